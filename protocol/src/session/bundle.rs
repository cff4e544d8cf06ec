//! Bundles: the material that one inference uses up, and its stored form.
//!
//! A bundle is neither cloned nor used by reference: the functions that spend one take it by value.
//! The stored form is a header, arrays one after the other whose lengths follow from the model, and
//! a checksum. The checksum detects damage, not tampering, because the store is trusted.
//!
//! # Cost
//! Client: `16 m + 32 (m - 1) + 16` bytes per ReLU, 16 per square or polynomial, 8 more for every
//! element, 8 for each input, and labels and tables of the arg max. Server: 16 bytes and a bit per
//! ReLU, 16 bytes per square or polynomial, 8 per identity element, 8 more for every element.

use super::model::{ClientModel, ServerModel};
use crate::Error;
use crate::header::{BundleHeader, BundleId};
use crate::indexed_circuit::{IndexedCircuit, LayerIndex};
use crate::nonlinear::label::{ClientLabel, ServerLabel};
use crate::nonlinear::relu::ClientRelu;
use crate::wire::Reader;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{BLOCK_BYTES, Bits, Block, Delta, SecretBytes, memory};
use pi_garble::{ArgMax, ServerGadget};
use zeroize::Zeroizing;

/// The client's material for one inference.
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
}

/// The client's part of one layer.
pub(crate) struct ClientLayer {
    /// Shares of the sum, before the truncation; of the logits at the output.
    pub(crate) c: Elements,
    /// The layer's ReLUs, if it has any.
    pub(crate) relu: Option<ClientRelu>,
    /// The label's arg max, at an output that reveals it.
    pub(crate) label: Option<ClientLabel>,
    /// Sum of the OLE shares, by square or polynomial.
    pub(crate) u: Elements,
    /// The next tensor's mask at the ReLUs, then at squares and polynomials.
    pub(crate) next: Elements,
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
    pub(crate) layers: Vec<ServerLayer>,
}

/// The server's part of one layer.
pub(crate) struct ServerLayer {
    /// Bias less `s`, after the layer's pool.
    pub(crate) offset: Elements,
    /// The gadgets of the layer's ReLUs, if it has any.
    pub(crate) gadget: Option<ServerGadget>,
    /// The label's arg max, at an output that reveals it.
    pub(crate) label: Option<ServerLabel>,
    /// `d0` by square or polynomial.
    pub(crate) d0: Elements,
    /// Sum of the OLE shares, by square or polynomial.
    pub(crate) v: Elements,
    /// The client's `c' - r` of identity elements.
    pub(crate) identity: Elements,
}

const STORED_VERSION: u8 = 2;
const CLIENT_TAG: u8 = b'C';
const SERVER_TAG: u8 = b'S';
const CHECKSUM_BYTES: usize = 32;
const FRAME_BYTES: usize = 2 + BundleHeader::BYTES + CHECKSUM_BYTES;

/// Bytes of the client's half of a bundle as it is stored.
pub(crate) fn client_bytes(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index().map(|(layer, index)| {
        let n = index.relu.len();
        let relu = index.width.map_or(0, |width| {
            width.label_bytes(n) + width.table_bytes(n) + ELEMENT_BYTES * n
        });
        let label = (index.label).map_or(0, |shape| shape.label_bytes() + shape.table_bytes());
        let elements = layer.shape.len() + index.quadratic.len() + index.online();
        relu + label + ELEMENT_BYTES * elements
    });
    FRAME_BYTES + ELEMENT_BYTES * indexed.circuit.input.len() + layers.sum::<usize>()
}

/// Bytes of the server's half of a bundle as it is stored.
pub(crate) fn server_bytes(indexed: &IndexedCircuit) -> usize {
    let layers = indexed.layers_with_index().map(|(layer, index)| {
        let elements = layer.shape.len() + 2 * index.quadratic.len() + index.identity.len();
        let label = index.label.map_or(0, ArgMax::decoding_bytes);
        gadget_bytes(index) + label + ELEMENT_BYTES * elements
    });
    FRAME_BYTES + 32 + BLOCK_BYTES + layers.sum::<usize>()
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

    /// The form to be stored: secret.
    pub fn encode(&self) -> SecretBytes {
        let relu_bytes = |relu: &ClientRelu| {
            BLOCK_BYTES * relu.labels.len() + relu.tables.len() + ELEMENT_BYTES * relu.u.len()
        };
        let layers = self.layers.iter().map(|layer| {
            let elements = layer.c.len() + layer.u.len() + layer.next.len();
            let label = layer.label.as_ref();
            let label = label.map_or(0, |l| BLOCK_BYTES * l.labels.len() + l.tables.len());
            layer.relu.as_ref().map_or(0, relu_bytes) + label + ELEMENT_BYTES * elements
        });
        let input = ELEMENT_BYTES * self.input_mask.len();
        let length = FRAME_BYTES + input + layers.sum::<usize>();
        let mut bytes = start(CLIENT_TAG, &self.header, length);
        bytes.extend_from_slice(fp::encode(&self.input_mask));
        for layer in &self.layers {
            bytes.extend_from_slice(fp::encode(&layer.c));
            if let Some(relu) = &layer.relu {
                bytes.extend_from_slice(Block::encode(&relu.labels));
                bytes.extend_from_slice(&relu.tables);
                bytes.extend_from_slice(fp::encode(&relu.u));
            }
            if let Some(label) = &layer.label {
                bytes.extend_from_slice(Block::encode(&label.labels));
                bytes.extend_from_slice(&label.tables);
            }
            bytes.extend_from_slice(fp::encode(&layer.u));
            bytes.extend_from_slice(fp::encode(&layer.next));
        }
        seal(bytes, length)
    }

    /// Reads a bundle of this model from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are damaged, [`Error::ApiMisuse`] if the bundle is of another
    /// model.
    pub fn decode(bytes: &[u8], model: &ClientModel) -> Result<Self, Error> {
        let (header, mut reader) = open(bytes, CLIENT_TAG)?;
        model.public().check_header(&header)?;
        let indexed = model.indexed();
        let input_mask = elements(&mut reader, indexed.circuit.input.len())?;
        let layers = indexed.layers_with_index().map(|(layer, index)| {
            Ok(ClientLayer {
                c: elements(&mut reader, layer.shape.len())?,
                relu: client_relu(&mut reader, index)?,
                label: client_label(&mut reader, index)?,
                u: elements(&mut reader, index.quadratic.len())?,
                next: elements(&mut reader, index.online())?,
            })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        reader.end()?;
        Ok(ClientBundle {
            header,
            input_mask,
            layers,
        })
    }
}

fn client_relu(reader: &mut Reader<'_>, index: &LayerIndex) -> Result<Option<ClientRelu>, Error> {
    let Some(width) = index.width else {
        return Ok(None);
    };
    let n = index.relu.len();
    let labels = reader.take(width.label_bytes(n))?;
    let labels = Block::decode(WHAT, labels, n * width.bits() as usize).map_err(damaged)?;
    Ok(Some(ClientRelu {
        labels,
        tables: memory::copied(reader.take(width.table_bytes(n))?),
        u: elements(reader, n)?,
    }))
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

    /// The form to be stored: secret.
    pub fn encode(&self) -> SecretBytes {
        let layers = self.layers.iter().map(|layer| {
            let elements =
                layer.offset.len() + layer.d0.len() + layer.v.len() + layer.identity.len();
            let gadget = layer.gadget.as_ref();
            let label = layer.label.as_ref();
            gadget.map_or(0, |gadget| ServerGadget::stored_bytes(gadget.len()))
                + label.map_or(0, |label| label.decoding.as_bytes().len())
                + ELEMENT_BYTES * elements
        });
        let length = FRAME_BYTES + 32 + BLOCK_BYTES + layers.sum::<usize>();
        let mut bytes = start(SERVER_TAG, &self.header, length);
        bytes.extend_from_slice(&*self.label_seed);
        bytes.extend_from_slice(&self.delta.block().to_bytes());
        for layer in &self.layers {
            bytes.extend_from_slice(fp::encode(&layer.offset));
            if let Some(gadget) = &layer.gadget {
                bytes.extend_from_slice(&gadget.to_bytes());
            }
            if let Some(label) = &layer.label {
                bytes.extend_from_slice(label.decoding.as_bytes());
            }
            bytes.extend_from_slice(fp::encode(&layer.d0));
            bytes.extend_from_slice(fp::encode(&layer.v));
            bytes.extend_from_slice(fp::encode(&layer.identity));
        }
        seal(bytes, length)
    }

    /// Reads a bundle of this model from its stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are damaged, [`Error::ApiMisuse`] if the bundle is of another
    /// model.
    pub fn decode(bytes: &[u8], model: &ServerModel) -> Result<Self, Error> {
        let (header, mut reader) = open(bytes, SERVER_TAG)?;
        model.public().check_header(&header)?;
        let label_seed = Zeroizing::new(reader.array()?);
        let delta = Delta::from_block(Block::from_bytes(reader.array()?));
        let layers = model.indexed().layers_with_index().map(|(layer, index)| {
            Ok(ServerLayer {
                offset: elements(&mut reader, layer.shape.len())?,
                gadget: match index.width {
                    None => None,
                    Some(_) => {
                        let gadget = reader.take(gadget_bytes(index))?;
                        Some(ServerGadget::from_bytes(gadget, index.relu.len())?)
                    }
                },
                label: server_label(&mut reader, index)?,
                d0: elements(&mut reader, index.quadratic.len())?,
                v: elements(&mut reader, index.quadratic.len())?,
                identity: elements(&mut reader, index.identity.len())?,
            })
        });
        let layers = layers.collect::<Result<_, Error>>()?;
        reader.end()?;
        Ok(ServerBundle {
            header,
            label_seed,
            delta,
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

/// Bytes of a layer's stored gadgets.
fn gadget_bytes(index: &LayerIndex) -> usize {
    match index.width {
        Some(_) => ServerGadget::stored_bytes(index.relu.len()),
        None => 0,
    }
}

const WHAT: &str = "bundle";

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::stored(format!("{WHAT}: {error}"))
}

fn start(tag: u8, header: &BundleHeader, length: usize) -> SecretBytes {
    // Reserved at once, so that no copy of a secret is left behind.
    let mut bytes = SecretBytes::with_capacity(length);
    bytes.extend_from_slice(&[STORED_VERSION, tag]);
    bytes.extend_from_slice(&header.to_bytes());
    bytes
}

fn seal(mut bytes: SecretBytes, length: usize) -> SecretBytes {
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum);
    debug_assert_eq!(bytes.len(), length);
    bytes
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 stored bundle");
    hash.update(bytes);
    hash.finalize().into()
}

/// Checks the frame; returns the header and a reader of the content.
fn open(bytes: &[u8], tag: u8) -> Result<(BundleHeader, Reader<'_>), Error> {
    let parts = bytes.split_last_chunk::<CHECKSUM_BYTES>();
    let Some((content, _)) = parts.filter(|(content, found)| checksum(content) == **found) else {
        return Err(damaged("the checksum does not match"));
    };
    let mut reader = Reader::stored(WHAT, content);
    if reader.array()? != [STORED_VERSION, tag] {
        return Err(damaged("another kind or version"));
    }
    Ok((BundleHeader::from_bytes(&reader.array()?), reader))
}

fn elements(reader: &mut Reader<'_>, count: usize) -> Result<Elements, Error> {
    let bytes = reader.take(ELEMENT_BYTES * count)?;
    let elements = fp::decode(WHAT, bytes, count).map_err(damaged)?;
    Ok(Zeroizing::new(elements))
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
