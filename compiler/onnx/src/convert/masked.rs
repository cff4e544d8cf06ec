//! Relu nodes whose elements are of the kinds that a file of masks says.

use super::{At, Converter};
use crate::field::{Field, Function};
use crate::masks::Site;
use crate::tensor::Tensor;
use crate::value::{Axis, Live, Part};

impl Converter<'_> {
    /// `max(x, 0)`, `x` or `a x^2 + b x + c`, element by element.
    pub(super) fn masked(&mut self, at: At<'_>, site: &Site) -> Result<Live, String> {
        let live = at.live(0)?;
        let dims = live.dims();
        let mask = Mask::new(site, live, &dims)?;
        let fields = |tensor: &Tensor| live.split(tensor);
        let [identity, relu, quadratic] = [0, 1, 2].map(|kind| mask.flags(kind));
        let coefficients = [0, 1, 2].map(|power| mask.coefficients(power));
        let constants = [identity, relu, quadratic].into_iter().chain(coefficients);
        let constants: Vec<Vec<Tensor>> = constants
            .map(|tensor| fields(&tensor))
            .collect::<Result<_, _>>()?;
        let mut index = 0;
        self.each(live, |this, part| {
            let bare = this.bare(part)?;
            let shape = bare.view.shape;
            let own = constants.iter().map(|parts| bare.view.field(&parts[index]));
            let own: Vec<Field> = own.collect::<Result<_, String>>()?;
            index += 1;
            let [identity, relu, quadratic, square, linear, constant] =
                <[Field; 6]>::try_from(own).expect("six constants");
            let quadratic = Function {
                square,
                linear,
                constant,
                relu: Field::ZERO,
            }
            .times(&quadratic, shape);
            let function = Function::relu().times(&relu, shape);
            let function = function.plus(&Function::identity().times(&identity, shape), shape);
            Ok(Part {
                name: at.name.to_owned(),
                function: function.plus(&quadratic, shape),
                ..bare
            })
        })
    }
}

/// The kinds of a tensor, in its own dimensions.
struct Mask<'s> {
    site: &'s Site,
    dims: Vec<usize>,
    channels: usize,
}

impl<'s> Mask<'s> {
    /// # Errors
    /// If the file's shapes are not those of the tensor.
    fn new(site: &'s Site, live: &Live, dims: &[usize]) -> Result<Self, String> {
        let long = |dims: &[usize]| -> Vec<usize> {
            dims.iter().copied().filter(|&size| size != 1).collect()
        };
        if long(&site.dims) != long(dims) {
            return Err(format!(
                "its tensor of kinds has {:?} elements; {:?} are expected, without the batch",
                site.dims,
                dims.get(1..).unwrap_or_default()
            ));
        }
        let order = &live.parts[0].view.order;
        let channels = order.iter().position(|group| group.contains(&Axis::C));
        let channels = channels.unwrap_or(dims.len().saturating_sub(1).min(1));
        let expected = *dims.get(channels).ok_or("it reads a tensor without axes")?;
        let rows = site.coefficients.len();
        if rows != 0 && rows != expected {
            return Err(format!(
                "its coefficients are those of {rows} channels; {expected} are expected"
            ));
        }
        Ok(Mask {
            site,
            dims: dims.to_vec(),
            channels,
        })
    }

    /// 1 where an element is of a kind.
    fn flags(&self, kind: u8) -> Tensor {
        let flags = self.site.kinds.iter();
        let flags = flags.map(|&own| f32::from(u8::from(own == kind)));
        Tensor::floats(self.dims.clone(), flags.collect())
    }

    /// The coefficients of a power by channel, the square's first.
    fn coefficients(&self, power: usize) -> Tensor {
        if self.site.coefficients.is_empty() {
            return Tensor::floats(vec![1], vec![0.0]);
        }
        let mut dims = vec![1; self.dims.len()];
        dims[self.channels] = self.dims[self.channels];
        let values = self.site.coefficients.iter().map(|abc| abc[power]);
        Tensor::floats(dims, values.collect())
    }
}
