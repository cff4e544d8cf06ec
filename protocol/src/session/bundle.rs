//! Bundles: the material that one inference uses up, and its stored form.
//!
//! A bundle is neither cloned nor used by reference: the functions that spend one take it by value.
//! The stored form is a row of sections ([`super::sections`]) of arrays whose lengths follow from
//! the model, in the order in which they are used:
//!
//! | section | client | server |
//! | --- | --- | --- |
//! | header | kind, version, header | the same |
//! | first | mask of the input | seed of the labels, `delta` |
//! | per layer | `c`; labels and tables of the arg max; `u` and the next mask of its elements | bias less `s`; gadgets; decoding of the arg max; `d0`, `v`; identity elements |
//! | per piece | labels, tables and `u` of its ReLUs | |
//!
//! The client never has all pieces of a large circuit in memory: they are written as they are made,
//! and read as their messages come.
//!
//! # Cost
//! Client: `16 m + 32 (m - 1) + 16` bytes per ReLU, 16 per square or polynomial, 8 more for every
//! element, 8 for each input, and labels and tables of the arg max. Server: 16 bytes and a bit per
//! ReLU, 16 bytes per square or polynomial, 8 per identity element, 8 more for every element, and
//! 16 for the key of all guards, if there are any. 32 bytes a section.

use super::model::{ClientModel, ServerModel};
use super::sections::{
    BundleSink, BundleSource, HEADER_BYTES, SectionReader, SectionWriter, WHAT, damaged, elements,
    section_bytes,
};
use crate::Error;
use crate::header::{BundleHeader, BundleId};
use crate::indexed_circuit::{IndexedCircuit, LayerIndex};
use crate::nonlinear::label::{ClientLabel, ServerLabel};
use crate::nonlinear::relu::ClientRelu;
use crate::parts::Piece;
use crate::wire::Reader;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{BLOCK_BYTES, Bits, Block, Delta, memory};
use pi_garble::{ArgMax, GuardKey, ServerGadget};
use pi_ir::Layer;
use std::collections::VecDeque;
use zeroize::Zeroizing;

/// The client's material for one inference, of which the pieces may still lie where it is stored.
///
/// It cannot be copied:
/// ```compile_fail,E0277
/// fn copied<T: Clone>() {}
/// copied::<pi_protocol::session::ClientBundle>();
/// ```
pub struct ClientBundle {
    pub(crate) header: BundleHeader,
    /// The mask of the input.
    pub(crate) input_mask: Elements,
    pub(crate) layers: Vec<ClientLayer>,
    pub(crate) pieces: ClientPieces,
}

/// The client's part of one layer, but for its ReLUs.
#[derive(Default)]
pub(crate) struct ClientLayer {
    /// Shares of the sum, before the truncation; of the logits at the output.
    pub(crate) c: Elements,
    /// The label's arg max, at an output that reveals it.
    pub(crate) label: Option<ClientLabel>,
    /// Sum of the OLE shares, by square or polynomial.
    pub(crate) u: Elements,
    /// The next tensor's mask at the ReLUs, then at squares and polynomials.
    pub(crate) next: Elements,
}

/// The client's pieces in their order, some of them read ahead.
pub(crate) struct ClientPieces {
    /// The pieces that are still to be read; none if all were.
    sections: Option<SectionReader<Box<dyn BundleSource>>>,
    /// Number of pieces that were read.
    read: usize,
    ahead: VecDeque<ClientRelu>,
}

/// The server's material for one inference.
///
/// It cannot be copied:
/// ```compile_fail,E0277
/// fn copied<T: Clone>() {}
/// copied::<pi_protocol::session::ServerBundle>();
/// ```
pub struct ServerBundle {
    pub(crate) header: BundleHeader,
    /// Chooses the labels of the server's inputs.
    pub(crate) label_seed: Zeroizing<[u8; 32]>,
    pub(crate) delta: Delta,
    /// Seals the last message, if anything is guarded.
    pub(crate) range_key: Option<GuardKey>,
    pub(crate) layers: Vec<ServerLayer>,
}

/// The server's part of one layer.
#[derive(Default)]
pub(crate) struct ServerLayer {
    /// Bias less `s`, after the layer's pool.
    pub(crate) offset: Elements,
    /// The gadgets of the layer's ReLUs, piece by piece.
    pub(crate) gadgets: Vec<ServerGadget>,
    /// The label's arg max, at an output that reveals it.
    pub(crate) label: Option<ServerLabel>,
    /// `d0` by square or polynomial.
    pub(crate) d0: Elements,
    /// Sum of the OLE shares, by square or polynomial.
    pub(crate) v: Elements,
    /// The client's `c' - r` of identity elements.
    pub(crate) identity: Elements,
}

const CLIENT_TAG: u8 = b'C';
const SERVER_TAG: u8 = b'S';

/// Bytes of the client's half of a bundle as it is stored.
pub(crate) fn client_bytes(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index();
    let layers = layers.map(|(layer, index)| section_bytes(client_layer_bytes(layer, index)));
    let pieces = indexed.parts.all().iter();
    let pieces = pieces.map(|piece| section_bytes(client_piece_bytes(piece)));
    HEADER_BYTES
        + section_bytes(ELEMENT_BYTES * indexed.circuit.input.len())
        + layers.sum::<usize>()
        + pieces.sum::<usize>()
}

fn client_layer_bytes(layer: &Layer, index: &LayerIndex) -> usize {
    let label = (index.label).map_or(0, |shape| shape.label_bytes() + shape.table_bytes());
    let elements = layer.shape.len() + index.quadratic.len() + index.online();
    label + ELEMENT_BYTES * elements
}

/// Bytes of a piece of the client's, without the checksum.
pub(crate) fn client_piece_bytes(piece: &Piece) -> usize {
    let (width, n) = (piece.width, piece.len);
    width.label_bytes(n) + width.table_bytes(n) + ELEMENT_BYTES * n
}

/// Bytes of the server's half of a bundle as it is stored.
pub(crate) fn server_bytes(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index();
    let layers = layers.map(|(layer, index)| section_bytes(server_layer_bytes(layer, index)));
    HEADER_BYTES + section_bytes(server_keys_bytes(indexed)) + layers.sum::<usize>()
}

/// Bytes of the seed, `delta`, and the key that seals the last message.
fn server_keys_bytes(indexed: &IndexedCircuit) -> usize {
    32 + BLOCK_BYTES + if indexed.guarded { GuardKey::BYTES } else { 0 }
}

fn server_layer_bytes(layer: &Layer, index: &LayerIndex) -> usize {
    let elements = layer.shape.len() + 2 * index.quadratic.len() + index.identity.len();
    let label = index.label.map_or(0, ArgMax::decoding_bytes);
    // Pieces are whole bytes of colours, but for the last.
    ServerGadget::stored_bytes(index.relu.len()) + label + ELEMENT_BYTES * elements
}

/// The client's half of a bundle, as it is written while it is made: the layers, then the pieces.
pub(crate) struct ClientWriter<'a>(SectionWriter<'a>);

impl<'a> ClientWriter<'a> {
    pub(crate) fn begin(
        sink: &'a mut dyn BundleSink,
        header: &BundleHeader,
        input_mask: &[u64],
    ) -> Result<Self, Error> {
        let mut sections = SectionWriter::begin(sink, CLIENT_TAG, header)?;
        sections.put(fp::encode(input_mask))?;
        sections.end_section()?;
        Ok(ClientWriter(sections))
    }

    pub(crate) fn layer(&mut self, layer: &ClientLayer) -> Result<(), Error> {
        let sections = &mut self.0;
        sections.put(fp::encode(&layer.c))?;
        if let Some(label) = &layer.label {
            sections.put(Block::encode(&label.labels))?;
            sections.put(&label.tables)?;
        }
        sections.put(fp::encode(&layer.u))?;
        sections.put(fp::encode(&layer.next))?;
        sections.end_section()
    }

    pub(crate) fn piece(&mut self, relu: &ClientRelu) -> Result<(), Error> {
        let sections = &mut self.0;
        sections.put(Block::encode(&relu.labels))?;
        sections.put(&relu.tables)?;
        sections.put(fp::encode(&relu.u))?;
        sections.end_section()
    }
}

impl ClientBundle {
    /// The bundle's identity; the same at both parties.
    pub fn id(&self) -> BundleId {
        self.header.id()
    }

    /// The header.
    pub fn header(&self) -> &BundleHeader {
        &self.header
    }

    /// Bytes of the stored form of a bundle of this model.
    pub fn encoded_len(model: &ClientModel) -> usize {
        client_bytes(model.indexed())
    }

    /// Reads a bundle of this model from its stored form, but for the pieces, which an inference
    /// reads as it needs them.
    ///
    /// # Errors
    /// [`Error::Stored`] if what was read is damaged, [`Error::ApiMisuse`] if the bundle is of
    /// another model.
    pub fn open(source: Box<dyn BundleSource>, model: &ClientModel) -> Result<Self, Error> {
        let (mut bundle, mut sections) = ClientBundle::open_layers(source, model)?;
        if model.indexed().parts.all().is_empty() {
            sections.end()?;
        }
        bundle.pieces.sections = Some(sections);
        Ok(bundle)
    }

    /// Reads the pieces that were not read: nothing is left to read then while an inference runs.
    ///
    /// # Errors
    /// [`Error::Stored`] if they are damaged.
    pub fn read_ahead(&mut self, model: &ClientModel) -> Result<(), Error> {
        let pieces = model.indexed().parts.all();
        while self.pieces.read < pieces.len() {
            let piece = self.pieces.read_next(pieces)?;
            self.pieces.ahead.push_back(piece);
        }
        self.pieces.sections = None;
        Ok(())
    }

    /// Reads a whole bundle of this model from its stored form.
    ///
    /// # Errors
    /// As [`ClientBundle::open`].
    pub fn decode(bytes: &[u8], model: &ClientModel) -> Result<Self, Error> {
        let (mut bundle, mut sections) = ClientBundle::open_layers(bytes, model)?;
        for piece in model.indexed().parts.all() {
            let relu = client_relu(&mut sections, piece)?;
            bundle.pieces.ahead.push_back(relu);
            bundle.pieces.read += 1;
        }
        sections.end()?;
        Ok(bundle)
    }

    fn open_layers<S: BundleSource>(
        source: S,
        model: &ClientModel,
    ) -> Result<(Self, SectionReader<S>), Error> {
        let indexed = model.indexed();
        let (mut sections, header) = SectionReader::open(source, CLIENT_TAG, model.public())?;
        let inputs = indexed.circuit.input.len();
        let mut reader = sections.section(ELEMENT_BYTES * inputs)?;
        let input_mask = elements(&mut reader, inputs)?;
        let mut layers = Vec::with_capacity(indexed.layers.len());
        for (layer, index) in indexed.layers_with_index() {
            let mut reader = sections.section(client_layer_bytes(layer, index))?;
            layers.push(ClientLayer {
                c: elements(&mut reader, layer.shape.len())?,
                label: client_label(&mut reader, index)?,
                u: elements(&mut reader, index.quadratic.len())?,
                next: elements(&mut reader, index.online())?,
            });
            reader.end()?;
        }
        let bundle = ClientBundle {
            header,
            input_mask,
            layers,
            pieces: ClientPieces {
                sections: None,
                read: 0,
                ahead: VecDeque::new(),
            },
        };
        Ok((bundle, sections))
    }
}

impl ClientPieces {
    /// The next of the circuit's `pieces`; each is there once.
    ///
    /// # Errors
    /// [`Error::Stored`] if it is damaged.
    pub(crate) fn next(&mut self, pieces: &[Piece]) -> Result<ClientRelu, Error> {
        match self.ahead.pop_front() {
            Some(piece) => Ok(piece),
            None => self.read_next(pieces),
        }
    }

    fn read_next(&mut self, pieces: &[Piece]) -> Result<ClientRelu, Error> {
        let sections = self.sections.as_mut().zip(pieces.get(self.read));
        let (sections, piece) = sections.ok_or_else(|| damaged("no piece is left"))?;
        let relu = client_relu(sections, piece)?;
        self.read += 1;
        if self.read == pieces.len() {
            sections.end()?;
        }
        Ok(relu)
    }
}

fn client_relu<S: BundleSource>(
    sections: &mut SectionReader<S>,
    piece: &Piece,
) -> Result<ClientRelu, Error> {
    let (width, n) = (piece.width, piece.len);
    let mut reader = sections.section(client_piece_bytes(piece))?;
    let labels = reader.take(width.label_bytes(n))?;
    let labels = Block::decode(WHAT, labels, n * width.bits() as usize).map_err(damaged)?;
    let relu = ClientRelu {
        labels,
        tables: memory::copied(reader.take(width.table_bytes(n))?),
        u: elements(&mut reader, n)?,
    };
    reader.end()?;
    Ok(relu)
}

fn client_label(reader: &mut Reader<'_>, index: &LayerIndex) -> Result<Option<ClientLabel>, Error> {
    let Some(shape) = index.label else {
        return Ok(None);
    };
    let labels = reader.take(shape.label_bytes())?;
    let labels = Block::decode(WHAT, labels, shape.input_bits()).map_err(damaged)?;
    Ok(Some(ClientLabel {
        labels,
        tables: memory::copied(reader.take(shape.table_bytes())?),
    }))
}

impl ServerBundle {
    /// The bundle's identity; the same at both parties.
    pub fn id(&self) -> BundleId {
        self.header.id()
    }

    /// The header.
    pub fn header(&self) -> &BundleHeader {
        &self.header
    }

    /// Bytes of the stored form of a bundle of this model.
    pub fn encoded_len(model: &ServerModel) -> usize {
        server_bytes(model.indexed())
    }

    /// Writes the form to be stored, which is secret.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn write(&self, sink: &mut dyn BundleSink) -> Result<(), Error> {
        let mut sections = SectionWriter::begin(sink, SERVER_TAG, &self.header)?;
        sections.put(&*self.label_seed)?;
        sections.put(&self.delta.block().to_bytes())?;
        if let Some(key) = &self.range_key {
            sections.put(&*key.to_bytes())?;
        }
        sections.end_section()?;
        for layer in &self.layers {
            sections.put(fp::encode(&layer.offset))?;
            for gadget in &layer.gadgets {
                sections.put(&gadget.to_bytes())?;
            }
            if let Some(label) = &layer.label {
                sections.put(label.decoding.as_bytes())?;
            }
            sections.put(fp::encode(&layer.d0))?;
            sections.put(fp::encode(&layer.v))?;
            sections.put(fp::encode(&layer.identity))?;
            sections.end_section()?;
        }
        Ok(())
    }

    /// Reads a bundle of this model from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are damaged, [`Error::ApiMisuse`] if the bundle is of another
    /// model.
    pub fn read(source: impl BundleSource, model: &ServerModel) -> Result<Self, Error> {
        let indexed = model.indexed();
        let (mut sections, header) = SectionReader::open(source, SERVER_TAG, model.public())?;
        let mut reader = sections.section(server_keys_bytes(indexed))?;
        let label_seed = Zeroizing::new(reader.array()?);
        let delta = Delta::from_block(Block::from_bytes(reader.array()?));
        let range_key = match indexed.guarded {
            true => Some(GuardKey::from_bytes(reader.array()?)),
            false => None,
        };
        let mut layers = Vec::with_capacity(indexed.layers.len());
        for (l, (layer, index)) in indexed.layers_with_index().enumerate() {
            let mut reader = sections.section(server_layer_bytes(layer, index))?;
            let offset = elements(&mut reader, layer.shape.len())?;
            let gadgets = indexed.parts.of_layer(l).iter().map(|piece| {
                let gadget = reader.take(ServerGadget::stored_bytes(piece.len))?;
                Ok(ServerGadget::from_bytes(gadget, piece.len)?)
            });
            layers.push(ServerLayer {
                offset,
                gadgets: gadgets.collect::<Result<_, Error>>()?,
                label: server_label(&mut reader, index)?,
                d0: elements(&mut reader, index.quadratic.len())?,
                v: elements(&mut reader, index.quadratic.len())?,
                identity: elements(&mut reader, index.identity.len())?,
            });
            reader.end()?;
        }
        sections.end()?;
        Ok(ServerBundle {
            header,
            label_seed,
            delta,
            range_key,
            layers,
        })
    }
}

fn server_label(reader: &mut Reader<'_>, index: &LayerIndex) -> Result<Option<ServerLabel>, Error> {
    let Some(shape) = index.label else {
        return Ok(None);
    };
    let decoding = reader.take(shape.decoding_bytes())?;
    let decoding = Bits::decode(WHAT, decoding, shape.index_bits()).map_err(damaged)?;
    Ok(Some(ServerLabel { decoding }))
}

impl std::fmt::Debug for ClientBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientBundle({})", self.id())
    }
}

impl std::fmt::Debug for ServerBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerBundle({})", self.id())
    }
}
