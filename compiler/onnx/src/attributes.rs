//! Attributes of a node, with the types and defaults that ONNX gives them.

use crate::proto::{AttributeProto, NodeProto, TensorProto};

/// The attributes of one node.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a NodeProto);

impl<'a> Attributes<'a> {
    fn find(self, name: &str) -> Option<&'a AttributeProto> {
        let mut all = self.0.attribute.iter();
        all.find(|attribute| attribute.name.as_deref() == Some(name))
    }

    fn get<T>(
        self,
        name: &str,
        read: impl Fn(&'a AttributeProto) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(attribute) = self.find(name) else {
            return Ok(None);
        };
        let value = read(attribute);
        let value = value.ok_or_else(|| format!("attribute {name} has another type than ONNX's"));
        value.map(Some)
    }

    pub(crate) fn int(self, name: &str, default: i64) -> Result<i64, String> {
        Ok(self.get(name, |a| a.i)?.unwrap_or(default))
    }

    pub(crate) fn float(self, name: &str, default: f32) -> Result<f32, String> {
        Ok(self.float_if(name)?.unwrap_or(default))
    }

    pub(crate) fn float_if(self, name: &str) -> Result<Option<f32>, String> {
        self.get(name, |a| a.f)
    }

    pub(crate) fn string(self, name: &str, default: &'a str) -> Result<&'a str, String> {
        Ok(self.get(name, |a| a.s.as_deref())?.unwrap_or(default))
    }

    /// `None` without the attribute.
    pub(crate) fn ints(self, name: &str) -> Result<Option<&'a [i64]>, String> {
        self.get(name, |a| match a.i {
            Some(_) => None,
            None => Some(&a.ints[..]),
        })
    }

    pub(crate) fn floats(self, name: &str) -> Result<Option<&'a [f32]>, String> {
        self.get(name, |a| Some(&a.floats[..]))
    }

    pub(crate) fn tensor(self, name: &str) -> Result<Option<&'a TensorProto>, String> {
        self.get(name, |a| a.t.as_ref())
    }

    pub(crate) fn has(self, name: &str) -> bool {
        self.find(name).is_some()
    }
}
