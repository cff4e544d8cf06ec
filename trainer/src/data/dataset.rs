//! Labelled images in memory.

/// Labelled images, planar bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Channels, rows and columns of every image.
    pub shape: [usize; 3],
    /// The planes of all images, one image after the other.
    pub images: Vec<u8>,
    /// The label of each image.
    pub labels: Vec<u16>,
}

impl Dataset {
    /// A set without images.
    pub fn empty(shape: [usize; 3]) -> Self {
        Self {
            shape,
            images: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of image `index`.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`].
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * self.bytes()..(index + 1) * self.bytes()]
    }

    /// Removes the last `count` images and returns them.
    pub fn split_off(&mut self, count: usize) -> Dataset {
        let keep = self.len().saturating_sub(count);
        Dataset {
            shape: self.shape,
            images: self.images.split_off(keep * self.bytes()),
            labels: self.labels.split_off(keep),
        }
    }

    /// Removes `count` images in all from the heads of `parts` equal parts, and returns them.
    ///
    /// # Panics
    /// If `parts` does not divide `count` and the number of images.
    pub fn split_heads(&mut self, count: usize, parts: usize) -> Dataset {
        assert!(count.is_multiple_of(parts) && self.len().is_multiple_of(parts));
        let (part, head) = (self.len() / parts, count / parts);
        let (heads, rest): (Vec<usize>, Vec<usize>) =
            (0..self.len()).partition(|index| index % part < head);
        let heads = self.ordered(&heads);
        *self = self.ordered(&rest);
        heads
    }

    /// Keeps the first `count` images at most.
    pub fn limit(&mut self, count: usize) {
        self.images.truncate(count.saturating_mul(self.bytes()));
        self.labels.truncate(count);
    }

    /// Adds the images of another set of the same shape.
    ///
    /// # Panics
    /// Another shape.
    pub fn append(&mut self, mut other: Dataset) {
        assert_eq!(self.shape, other.shape, "sets of two shapes");
        self.images.append(&mut other.images);
        self.labels.append(&mut other.labels);
    }

    /// The images in the order of `indices`.
    pub(super) fn ordered(&self, indices: &[usize]) -> Dataset {
        let mut set = Dataset::empty(self.shape);
        set.images.reserve_exact(indices.len() * self.bytes());
        for index in indices {
            set.images.extend_from_slice(self.image(*index));
            set.labels.push(self.labels[*index]);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_cut_at_both_ends() {
        let mut set = Dataset {
            shape: [1, 1, 2],
            images: (0..10).collect(),
            labels: (0..5).collect(),
        };
        let last = set.split_off(2);
        assert_eq!(
            (last.labels.as_slice(), last.image(0)),
            (&[3, 4][..], &[6, 7][..])
        );
        set.limit(2);
        assert_eq!((set.len(), set.images.as_slice()), (2, &[0, 1, 2, 3][..]));
        set.limit(9);
        assert_eq!(set.len(), 2);
        set.append(last);
        assert_eq!(set.labels, [0, 1, 3, 4]);
        assert_eq!(set.ordered(&[3, 0]).images, [8, 9, 0, 1]);
        let heads = set.split_heads(2, 2);
        assert_eq!((heads.labels, set.labels), (vec![0, 3], vec![1, 4]));
        assert_eq!(
            (heads.images, set.images),
            (vec![0, 1, 6, 7], vec![2, 3, 8, 9])
        );
    }
}
