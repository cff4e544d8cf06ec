//! Masks beside a model: which elements of its activations are ReLUs.
//!
//! A network that is trained with plain `Relu` nodes gets its mask from a file in the safetensors
//! format. For an activation whose output is the tensor `NAME`, that file has
//!
//! - `NAME.kinds`, type `U8`, of the tensor's shape without the batch (`[C, H, W]`, or `[C]` behind
//!   a dense layer): 0 leaves an element as it is, 1 is a ReLU, 2 a quadratic `a x^2 + b x + c`;
//! - `NAME.coefficients`, type `F32`, of shape `[C, 3]`: `a`, `b` and `c` of each channel. Needed
//!   if a kind is 2.
//!
//! Activations that the file does not name stay ReLUs.
//!
//! # Hostile files
//! The lengths of the file and of its header are bounded before either is read.

use crate::proto::{GraphProto, NodeProto};
use crate::{Error, Fault};
use pi_ir::limits;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

/// Bytes of a file: the kinds of the largest network, and coefficients of a thousand channels for
/// each of its nodes.
const MAX_FILE: u64 = (limits::TOTAL_ELEMENTS + limits::NODES * 1024 * 12) as u64;
/// Bytes of its header, which names two tensors for each node.
const MAX_HEADER: u64 = (limits::NODES * 2 * 512) as u64;
/// Faults in names for which near ones are looked up.
const ADVISED: usize = 16;

/// Kinds and coefficients by the activation's output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Masks {
    sites: BTreeMap<String, Site>,
    /// Faults of the file alone.
    faults: Vec<Fault>,
}

/// What the file says of one activation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Site {
    /// Without the batch.
    pub(crate) dims: Vec<usize>,
    /// 0, 1 or 2.
    pub(crate) kinds: Vec<u8>,
    /// `a, b, c` by channel; empty if the file has none.
    pub(crate) coefficients: Vec<[f32; 3]>,
}

impl Masks {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is no safetensors file. What is wrong in one that is, is reported
    /// with the model's own faults.
    pub fn read(path: &Path) -> Result<Masks, Error> {
        let failed = |source| Error::Read {
            path: path.to_path_buf(),
            source,
        };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE {
            return Err(Error::Masks(format!(
                "{length} bytes are more than the masks of any network take ({MAX_FILE})"
            )));
        }
        Masks::parse(&fs::read(path).map_err(failed)?)
    }

    /// The masks of a file's bytes.
    ///
    /// # Errors
    /// As [`Masks::read`].
    pub fn parse(bytes: &[u8]) -> Result<Masks, Error> {
        let header = bytes.first_chunk().map(|&first| u64::from_le_bytes(first));
        if let Some(header) = header.filter(|&header| header > MAX_HEADER) {
            return Err(Error::Masks(format!(
                "its header has {header} bytes; at most {MAX_HEADER} are read"
            )));
        }
        let file = SafeTensors::deserialize(bytes);
        let file = file.map_err(|why| Error::Masks(why.to_string()))?;
        let mut masks = Masks::default();
        let mut tensors: Vec<(&str, TensorView<'_>)> = file.iter().collect();
        // Coefficients come before kinds, and the file has no order of its own.
        tensors.sort_by(|a, b| a.0.cmp(b.0));
        for (full, view) in tensors {
            let read = match full.rsplit_once('.') {
                Some((name, "coefficients")) => masks.coefficients(name, &view),
                Some((name, "kinds")) => masks.kinds(name, &view),
                _ => Err(
                    "tensors are called NAME.kinds and NAME.coefficients, NAME being the \
                          output of a Relu"
                        .into(),
                ),
            };
            if let Err(why) = read {
                masks.faults.push(fault(full, why));
            }
        }
        masks.check();
        Ok(masks)
    }

    fn kinds(&mut self, name: &str, view: &TensorView<'_>) -> Result<(), String> {
        let site = self.sites.entry(name.to_owned()).or_default();
        expect_type(view, Dtype::U8)?;
        let kinds = view.data();
        if let Some(index) = kinds.iter().position(|&kind| kind > 2) {
            return Err(format!(
                "element {index} is {}: a kind is 0 (left as it is), 1 (ReLU) or 2 (quadratic)",
                kinds[index]
            ));
        }
        if kinds.is_empty() {
            return Err(format!("its shape {:?} is empty", view.shape()));
        }
        site.dims = view.shape().to_vec();
        site.kinds = kinds.to_vec();
        Ok(())
    }

    fn coefficients(&mut self, name: &str, view: &TensorView<'_>) -> Result<(), String> {
        let site = self.sites.entry(name.to_owned()).or_default();
        expect_type(view, Dtype::F32)?;
        let [_, 3] = view.shape() else {
            return Err(format!(
                "its shape is {:?}; [channels, 3] is expected: a, b and c of a x^2 + b x + c",
                view.shape()
            ));
        };
        let values = view.data().as_chunks::<4>().0.iter();
        let values: Vec<f32> = values.map(|&bytes| f32::from_le_bytes(bytes)).collect();
        if let Some(index) = values.iter().position(|v| !v.is_finite()) {
            return Err(format!(
                "coefficient {} of channel {} is {}",
                ["a", "b", "c"][index % 3],
                index / 3,
                values[index]
            ));
        }
        site.coefficients = values.as_chunks().0.to_vec();
        Ok(())
    }

    /// What is missing beside what is there. Of sites with faults only the names are kept, which
    /// are still looked up in the model.
    fn check(&mut self) {
        let faulty: HashSet<String> = self.faults.iter().map(|f| f.node.clone()).collect();
        for (name, site) in &mut self.sites {
            let [kinds, coefficients] =
                ["kinds", "coefficients"].map(|end| format!("{name}.{end}"));
            let (absent, present, why) = if site.kinds.is_empty() {
                (kinds, coefficients, "coefficients alone say nothing")
            } else if site.kinds.contains(&2) && site.coefficients.is_empty() {
                (coefficients, kinds, "some of its elements are quadratics")
            } else {
                continue;
            };
            if !faulty.contains(&absent) {
                let why = format!("{absent} is missing: {why}");
                self.faults.push(fault(&present, why));
            }
            *site = Site::default();
        }
    }

    /// What is said of the activation that makes a tensor, if it is said without faults.
    pub(crate) fn site(&self, output: &str) -> Option<&Site> {
        self.sites.get(output).filter(|site| !site.kinds.is_empty())
    }

    /// The file's own faults, and names that are not those of a Relu that the model's result needs.
    pub(crate) fn faults(&self, graph: &GraphProto, needed: &[usize]) -> Vec<Fault> {
        let mut faults = self.faults.clone();
        let mut makers: HashMap<&str, &NodeProto> = HashMap::new();
        for node in &graph.node {
            makers.extend(node.output.iter().map(|output| (output.as_str(), node)));
        }
        let nodes = needed.iter().map(|&index| &graph.node[index]);
        let relus = nodes.filter(|node| operator(node) == "Relu");
        let relus: Vec<&NodeProto> = relus.filter(|node| !node.output.is_empty()).collect();
        let outputs: HashSet<&str> = relus.iter().map(|node| node.output[0].as_str()).collect();
        let unknown = self
            .sites
            .keys()
            .filter(|name| !outputs.contains(&name[..]));
        for (index, name) in unknown.enumerate() {
            let why = match makers.get(&name[..]) {
                Some(node) if operator(node) == "Relu" => {
                    "the result does not need this Relu".to_owned()
                }
                Some(node) => format!(
                    "{} makes this tensor: only the output of a Relu takes a mask",
                    operator(node)
                ),
                None if index < ADVISED => unknown_name(name, &relus),
                None => "the model has no such tensor".to_owned(),
            };
            faults.push(fault(name, why));
        }
        faults
    }
}

fn fault(node: &str, why: String) -> Fault {
    Fault::new(node, "masks", why)
}

fn operator(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap_or_default()
}

fn expect_type(view: &TensorView<'_>, expected: Dtype) -> Result<(), String> {
    match view.dtype() == expected {
        true => Ok(()),
        false => Err(format!(
            "its type is {:?}; {expected:?} is expected",
            view.dtype()
        )),
    }
}

/// Names that are not in the model usually miss by a prefix, a suffix, or are those of nodes.
fn unknown_name(name: &str, relus: &[&NodeProto]) -> String {
    if let Some(node) = relus.iter().find(|node| node.name.as_deref() == Some(name)) {
        return format!(
            "this is the name of a node: the file names its output, {}",
            node.output[0]
        );
    }
    let mut near: Vec<(usize, &str)> = (relus.iter())
        .map(|node| (in_common(name, &node.output[0]), node.output[0].as_str()))
        .collect();
    near.sort_by_key(|&(common, _)| std::cmp::Reverse(common));
    let near: Vec<&str> = near.iter().take(3).map(|&(_, name)| name).collect();
    match near.is_empty() {
        true => "the model has no such tensor, and no Relu".into(),
        false => format!(
            "the model has no such tensor; outputs of Relus with similar names: {}",
            near.join(", ")
        ),
    }
}

/// Bytes that two names have in common at their beginnings and at their ends.
fn in_common(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    start + { a.iter().rev() }
        .zip(b.iter().rev())
        .take_while(|(a, b)| a == b)
        .count()
}
