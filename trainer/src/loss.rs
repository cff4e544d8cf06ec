//! Losses of a batch of logits, and how many of its answers are right.

use burn::tensor::{Tensor, TensorData, activation::log_softmax};

use crate::config::Distil;

/// The labels of a batch.
pub(crate) struct Labels<'a> {
    /// One class per image.
    pub(crate) labels: &'a [usize],
    /// Share of the target that is spread over all classes.
    pub(crate) smoothing: f32,
}

/// Cross-entropy, and the divergence from the teacher if there is one; `taught` are the teacher's
/// logits, without autodiff.
pub(crate) fn objective(
    logits: Tensor<2>,
    labels: &Labels<'_>,
    distil: Option<&Distil>,
    taught: Option<Tensor<4>>,
) -> Tensor<1> {
    let (Some(distil), Some(taught)) = (distil, taught) else {
        return cross_entropy(logits, labels.labels, labels.smoothing);
    };
    let taught = Tensor::from_inner(taught).reshape(logits.dims());
    let own = distil.own_temperature();
    let loss =
        divergence(logits.clone(), taught, distil.temperature, own).mul_scalar(distil.weight);
    if distil.cross_entropy == 0.0 {
        return loss;
    }
    loss + cross_entropy(logits, labels.labels, labels.smoothing).mul_scalar(distil.cross_entropy)
}

/// Mean cross-entropy of `logits` (`[n, classes]`) against smoothed labels.
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: &[usize], smoothing: f32) -> Tensor<1> {
    let [n, classes] = logits.dims();
    let mut targets = vec![smoothing / classes as f32; n * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + label] += 1.0 - smoothing;
    }
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [n, classes]), &logits.device());
    (log_softmax(logits, 1) * targets).sum().neg() / n as f32
}

/// Mean `KL(softmax(teacher / t), softmax(student / s))`.
fn divergence(student: Tensor<2>, teacher: Tensor<2>, t: f32, s: f32) -> Tensor<1> {
    let n = student.dims()[0] as f32;
    let teacher = log_softmax(teacher.div_scalar(t), 1);
    let student = log_softmax(student.div_scalar(s), 1);
    (teacher.clone().exp() * (teacher - student)).sum() / n
}

/// Mean of the squares, image by image first: one sum over millions of numbers would come in an
/// order that depends on which thread is free.
pub(crate) fn mean_square(x: Tensor<4>) -> Tensor<1> {
    let [n, c, h, w] = x.dims();
    let squares = (x.clone() * x).reshape([n, c * h * w]);
    squares.mean_dim(1).mean()
}

/// Right answers of a batch, whose logits lie row by row.
pub(crate) fn hits(logits: &[f32], labels: &[usize]) -> usize {
    let classes = logits.len() / labels.len().max(1);
    logits
        .chunks(classes.max(1))
        .zip(labels)
        .filter(|(row, label)| argmax(row) == **label)
        .count()
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len())
        .max_by(|a, b| row[*a].total_cmp(&row[*b]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::tensors::download;

    fn logits(values: [f32; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, 2]), &Device::flex())
    }

    fn value(tensor: Tensor<1>) -> f32 {
        download(tensor)[0]
    }

    #[test]
    fn divergences_are_those_of_the_tempered_laws() {
        // softmax(ln 3, 0) = (3/4, 1/4); at temperature 2 of (ln 9, 0) the same.
        let expected = 0.75 * (0.75f32 / 0.5).ln() + 0.25 * (0.25f32 / 0.5).ln();
        let flat = logits([0.3, 0.3]);
        for (teacher, t) in [([3f32.ln(), 0.0], 1.0), ([9f32.ln(), 0.0], 2.0)] {
            let got = value(divergence(flat.clone(), logits(teacher), t, 1.0));
            assert!((got - expected).abs() < 1e-6, "temperature {t}: {got}");
        }
        // KL(teacher, student), not the other way round.
        let other = 0.5 * (0.5f32 / 0.75).ln() + 0.5 * (0.5f32 / 0.25).ln();
        let got = value(divergence(logits([3f32.ln(), 0.0]), flat, 1.0, 1.0));
        assert!((got - other).abs() < 1e-6, "{got}");
        let same = value(divergence(
            logits([2.0, -1.0]),
            logits([4.0, -2.0]),
            2.0,
            1.0,
        ));
        assert!(same.abs() < 1e-6, "equal laws are {same} apart");
    }

    #[test]
    fn cross_entropy_spreads_what_smoothing_takes() {
        let x = logits([3f32.ln(), 0.0]);
        let plain = value(cross_entropy(x.clone(), &[1], 0.0));
        assert!((plain - 4f32.ln()).abs() < 1e-6, "{plain}");
        // 0.2 over two classes: 0.9 of the label, 0.1 of the other.
        let smoothed = value(cross_entropy(x, &[1], 0.2));
        let expected = 0.9 * 4f32.ln() + 0.1 * (4f32 / 3.0).ln();
        assert!((smoothed - expected).abs() < 1e-6, "{smoothed}");
    }
}
