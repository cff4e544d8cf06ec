//! The usual architectures, for 32x32 and 64x64 pixels; max pools are average pools.
//!
//! ResNets are those of He et al. (CVPR 2016) in the form common for small images: a 3x3 stem at
//! stride 1, no pool after it; WRN-22-8 is pre-activation (Zagoruyko and Komodakis, BMVC 2016);
//! `lean9` follows the airbench networks. The same shapes as `pi_ir::builders`, so that a plan made
//! for one of those holds for a trained one.

use anyhow::{Result, bail, ensure};

use super::{KernelRule, Kind, Network, NetworkConfig, Node, Op, PolynomialKernel, Stage, Stem};
use crate::pattern::fits;

/// Limits that no network for small images comes near; a file that asks for more is wrong, and
/// shall not take all memory.
const MAX_SIDE: usize = 4096;
const MAX_CHANNELS: usize = 65_536;
const MAX_KERNEL: usize = 63;
const MAX_NODES: usize = 10_000;
const MAX_ELEMENTS: usize = 1 << 28;
const MAX_WEIGHTS: usize = 1 << 30;

#[derive(Clone, Copy)]
enum Block {
    Basic,
    Bottleneck,
}

impl Network {
    /// Builds the nodes for images of shape `input` (`[channels, side, side]`) in `classes`
    /// classes.
    ///
    /// # Errors
    /// A size of zero, an even kernel, more strides than the image has room for, or a rule that
    /// fits no convolution.
    pub fn new(config: &NetworkConfig, input: [usize; 3], classes: usize) -> Result<Self> {
        let [channels, height, width] = input;
        let side = 1..=MAX_SIDE;
        ensure!(
            side.contains(&channels)
                && side.contains(&height)
                && side.contains(&width)
                && (1..=MAX_CHANNELS).contains(&classes),
            "network: images of {channels}x{height}x{width} in {classes} classes: every number \
             must \
             be at least 1, and at most {MAX_SIDE}"
        );
        ensure!(
            config.width > 0.0 && config.width <= 64.0,
            "network.width is {}, must be above 0 and at most 64",
            config.width
        );
        ensure!(
            config
                .logit_scale
                .is_none_or(|scale| scale > 0.0 && scale.is_finite()),
            "network.logit_scale must be above 0 and finite"
        );
        if config.kind != Kind::Residual {
            ensure!(
                config.stem.is_none() && config.stages.is_empty(),
                "network.stem and network.stages describe kind = \"residual\" only"
            );
        }
        let mut nodes = Builder {
            nodes: Vec::new(),
            width: config.width,
            kernels: &config.kernels,
            used: vec![false; config.kernels.len()],
        };
        let image = nodes.push("input", Op::Input, vec![], input);
        let basic = |widths: &[usize], blocks: &[usize]| {
            let first = std::iter::once(1).chain(std::iter::repeat(2));
            let groups = widths.iter().zip(blocks).zip(first);
            groups
                .map(|((channels, blocks), stride)| Stage {
                    channels: *channels,
                    stride,
                    blocks: *blocks,
                })
                .collect::<Vec<_>>()
        };
        let stem = |channels| Stem {
            channels,
            kernel: 3,
            stride: 1,
        };
        let wide = [64, 128, 256, 512];
        let narrow = [16, 32, 64];
        let last = match config.kind {
            Kind::Residual => {
                let Some(stem) = config.stem else {
                    bail!(
                        "network.stem is missing: kind = \"residual\" needs it; or name another \
                         kind, resnet20 for one"
                    );
                };
                nodes.residual(image, stem, &config.stages, Block::Basic)?
            }
            Kind::Resnet10 => {
                nodes.residual(image, stem(64), &basic(&wide, &[1; 4]), Block::Basic)?
            }
            Kind::Resnet18 => {
                nodes.residual(image, stem(64), &basic(&wide, &[2; 4]), Block::Basic)?
            }
            Kind::Resnet34 => {
                nodes.residual(image, stem(64), &basic(&wide, &[3, 4, 6, 3]), Block::Basic)?
            }
            Kind::Resnet50 => {
                let stages = basic(&wide, &[3, 4, 6, 3]);
                nodes.residual(image, stem(64), &stages, Block::Bottleneck)?
            }
            Kind::Resnet20 => {
                nodes.residual(image, stem(16), &basic(&narrow, &[3; 3]), Block::Basic)?
            }
            Kind::Resnet32 => {
                nodes.residual(image, stem(16), &basic(&narrow, &[5; 3]), Block::Basic)?
            }
            Kind::Wrn22x8 => nodes.wide_residual(image)?,
            Kind::Lean9 => nodes.lean9(image)?,
            Kind::Lean12 => nodes.lean12(image)?,
        };
        let [c, h, w] = nodes.nodes[last].shape;
        ensure!(
            h == w,
            "network: the last map is {h}x{w}; images must be square"
        );
        let pooled = nodes.push("pool", Op::AvgPool { window: h }, vec![last], [c, 1, 1]);
        nodes.push(
            "dense",
            Op::Dense {
                inputs: c,
                scale: config.logit_scale,
            },
            vec![pooled],
            [classes, 1, 1],
        );
        check_size(&nodes.nodes)?;
        for (rule, used) in config.kernels.iter().zip(&nodes.used) {
            ensure!(
                *used,
                "network.kernels: no convolution fits \"{}\"; they are called stem, \
                 stage1.block1.a and so on",
                rule.convolutions
            );
        }
        Ok(Self {
            nodes: nodes.nodes,
            initial: config.initial,
        })
    }
}

struct Builder<'a> {
    nodes: Vec<Node>,
    width: f32,
    kernels: &'a [KernelRule],
    used: Vec<bool>,
}

impl Builder<'_> {
    fn push(&mut self, name: &str, op: Op, inputs: Vec<usize>, shape: [usize; 3]) -> usize {
        self.nodes.push(Node {
            name: name.to_owned(),
            op,
            inputs,
            shape,
        });
        self.nodes.len() - 1
    }

    fn scaled(&self, channels: usize) -> usize {
        ((channels as f32 * self.width).round() as usize).max(usize::from(channels > 0))
    }

    /// A convolution that keeps the size divided by the stride, and the polynomial kernel that a
    /// rule gives it.
    fn conv(
        &mut self,
        name: &str,
        input: usize,
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<usize> {
        let [c_in, h, w] = self.nodes[input].shape;
        ensure!(
            (1..=MAX_CHANNELS).contains(&channels) && stride > 0 && kernel <= MAX_KERNEL,
            "network: {name} has {channels} channels, a kernel of {kernel} and stride {stride}: \
             needed are 1 to {MAX_CHANNELS} channels, a kernel of at most {MAX_KERNEL} and a \
             stride of at least 1"
        );
        ensure!(
            self.nodes.len() < MAX_NODES,
            "network: more than {MAX_NODES} operations: fewer blocks will do"
        );
        ensure!(
            h > 1 || stride == 1,
            "network: {name} would stride over a map of one pixel"
        );
        let op = Op::Conv {
            c_in,
            kernel,
            stride,
            padding: kernel / 2,
            bias: false,
        };
        let shape = [channels, (h - 1) / stride + 1, (w - 1) / stride + 1];
        let conv = self.push(&format!("{name}.conv"), op, vec![input], shape);
        Ok(self.kernel(name, conv))
    }

    fn kernel(&mut self, name: &str, conv: usize) -> usize {
        let mut by = PolynomialKernel::Linear;
        for (rule, used) in self.kernels.iter().zip(&mut self.used) {
            if fits(&rule.convolutions, name) {
                (by, *used) = (rule.by, true);
            }
        }
        let scaled = match by {
            PolynomialKernel::Linear => return conv,
            PolynomialKernel::Pkn => false,
            PolynomialKernel::RPkn => true,
        };
        let shape = self.nodes[conv].shape;
        self.push(
            &format!("{name}.kernel"),
            Op::Kernel { scaled },
            vec![conv],
            shape,
        )
    }

    fn norm(&mut self, name: &str, input: usize) -> usize {
        let shape = self.nodes[input].shape;
        self.push(name, Op::Norm, vec![input], shape)
    }

    fn conv_norm(
        &mut self,
        name: &str,
        input: usize,
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<usize> {
        let conv = self.conv(name, input, channels, kernel, stride)?;
        Ok(self.norm(&format!("{name}.norm"), conv))
    }

    fn activation(&mut self, name: &str, input: usize) -> usize {
        let shape = self.nodes[input].shape;
        self.push(name, Op::Activation, vec![input], shape)
    }

    fn add(&mut self, name: &str, a: usize, b: usize) -> usize {
        let shape = self.nodes[a].shape;
        self.push(name, Op::Add, vec![a, b], shape)
    }

    fn residual(
        &mut self,
        image: usize,
        stem: Stem,
        stages: &[Stage],
        block: Block,
    ) -> Result<usize> {
        ensure!(
            stem.kernel % 2 == 1,
            "network.stem.kernel is {}, must be odd",
            stem.kernel
        );
        let channels = self.scaled(stem.channels);
        let norm = self.conv_norm("stem", image, channels, stem.kernel, stem.stride)?;
        let mut x = self.activation("stem.act", norm);
        for (s, stage) in stages.iter().enumerate() {
            let channels = self.scaled(stage.channels);
            for number in 0..stage.blocks {
                let name = format!("stage{}.block{}", s + 1, number + 1);
                let stride = if number == 0 { stage.stride } else { 1 };
                let out = match block {
                    Block::Basic => {
                        let a = self.conv_norm(&format!("{name}.a"), x, channels, 3, stride)?;
                        let a = self.activation(&format!("{name}.a.act"), a);
                        self.conv_norm(&format!("{name}.b"), a, channels, 3, 1)?
                    }
                    Block::Bottleneck => {
                        let a = self.conv_norm(&format!("{name}.a"), x, channels, 1, 1)?;
                        let a = self.activation(&format!("{name}.a.act"), a);
                        let b = self.conv_norm(&format!("{name}.b"), a, channels, 3, stride)?;
                        let b = self.activation(&format!("{name}.b.act"), b);
                        self.conv_norm(&format!("{name}.c"), b, 4 * channels, 1, 1)?
                    }
                };
                let shortcut = if self.nodes[x].shape == self.nodes[out].shape {
                    x
                } else {
                    let channels = self.nodes[out].shape[0];
                    self.conv_norm(&format!("{name}.shortcut"), x, channels, 1, stride)?
                };
                let sum = self.add(&format!("{name}.add"), out, shortcut);
                x = self.activation(&format!("{name}.act"), sum);
            }
        }
        Ok(x)
    }

    fn wide_residual(&mut self, image: usize) -> Result<usize> {
        let channels = self.scaled(16);
        let mut x = self.conv("stem", image, channels, 3, 1)?;
        for (s, width) in [128, 256, 512].into_iter().enumerate() {
            let channels = self.scaled(width);
            for block in 0..3 {
                let stride = if s > 0 && block == 0 { 2 } else { 1 };
                let name = format!("stage{}.block{}", s + 1, block + 1);
                let y = self.norm(&format!("{name}.a.norm"), x);
                let y = self.activation(&format!("{name}.a.act"), y);
                // A block that changes the shape takes its shortcut after the first activation.
                let shortcut = match block {
                    0 => self.conv(&format!("{name}.shortcut"), y, channels, 1, stride)?,
                    _ => x,
                };
                let y = self.conv(&format!("{name}.a"), y, channels, 3, stride)?;
                let y = self.norm(&format!("{name}.b.norm"), y);
                let y = self.activation(&format!("{name}.b.act"), y);
                let y = self.conv(&format!("{name}.b"), y, channels, 3, 1)?;
                x = self.add(&format!("{name}.add"), y, shortcut);
            }
        }
        let x = self.norm("last.norm", x);
        Ok(self.activation("last.act", x))
    }

    /// The convolution that whitens patches of 2x2, and its activation.
    fn whitening(&mut self, image: usize) -> Result<usize> {
        let [c_in, h, w] = self.nodes[image].shape;
        ensure!(
            h >= 16 && w >= 16,
            "network: lean networks need images of 16x16 or more, these are {h}x{w}"
        );
        let op = Op::Conv {
            c_in,
            kernel: 2,
            stride: 1,
            padding: 0,
            bias: true,
        };
        let shape = [self.scaled(24), h - 1, w - 1];
        let conv = self.push("whiten.conv", op, vec![image], shape);
        let conv = self.kernel("whiten", conv);
        Ok(self.activation("whiten.act", conv))
    }

    fn lean9(&mut self, image: usize) -> Result<usize> {
        let mut x = self.whitening(image)?;
        for (group, width) in [64, 256, 256].into_iter().enumerate() {
            let name = format!("group{}", group + 1);
            let channels = self.scaled(width);
            // The pool comes at once behind the convolution, of which it becomes a part; the norm's
            // moments are those of the means.
            x = self.conv(&format!("{name}.a"), x, channels, 3, 1)?;
            let [c, h, w] = self.nodes[x].shape;
            let pool = Op::AvgPool { window: 2 };
            x = self.push(&format!("{name}.pool"), pool, vec![x], [c, h / 2, w / 2]);
            x = self.norm(&format!("{name}.a.norm"), x);
            x = self.activation(&format!("{name}.a.act"), x);
            x = self.conv_norm(&format!("{name}.b"), x, channels, 3, 1)?;
            x = self.activation(&format!("{name}.b.act"), x);
        }
        Ok(x)
    }

    /// The larger of the airbench networks (Jordan, arXiv 2404.00498), with average pools.
    fn lean12(&mut self, image: usize) -> Result<usize> {
        let mut x = self.whitening(image)?;
        for (group, width) in [128, 384, 512].into_iter().enumerate() {
            let name = format!("group{}", group + 1);
            let channels = self.scaled(width);
            let conv = self.conv(&format!("{name}.a"), x, channels, 3, 1)?;
            let [c, h, w] = self.nodes[conv].shape;
            let pool = Op::AvgPool { window: 2 };
            let pooled = self.push(&format!("{name}.pool"), pool, vec![conv], [c, h / 2, w / 2]);
            let a = self.norm(&format!("{name}.a.norm"), pooled);
            let a = self.activation(&format!("{name}.a.act"), a);
            let b = self.conv_norm(&format!("{name}.b"), a, channels, 3, 1)?;
            let b = self.activation(&format!("{name}.b.act"), b);
            let c = self.conv_norm(&format!("{name}.c"), b, channels, 3, 1)?;
            let sum = self.add(&format!("{name}.add"), c, a);
            x = self.activation(&format!("{name}.c.act"), sum);
        }
        Ok(x)
    }
}

/// Refuses a network that no machine would train.
///
/// # Errors
/// More weights, or more elements of all maps, than could be trained.
fn check_size(nodes: &[Node]) -> Result<()> {
    let elements: usize = nodes.iter().map(Node::elements).sum();
    let weights = |node: &Node| match node.op {
        Op::Conv { c_in, kernel, .. } => node.shape[0] * c_in * kernel * kernel,
        Op::Dense { inputs, .. } => node.shape[0] * inputs,
        _ => 0,
    };
    let weights: usize = nodes.iter().map(weights).sum();
    ensure!(
        elements <= MAX_ELEMENTS && weights <= MAX_WEIGHTS,
        "network: it has {weights} weights and {elements} elements of all maps for one image, at \
         most {MAX_WEIGHTS} and {MAX_ELEMENTS} can be trained"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Initial;

    fn named(kind: Kind) -> NetworkConfig {
        NetworkConfig {
            kind,
            width: 1.0,
            stem: None,
            stages: Vec::new(),
            activations: Vec::new(),
            kernels: Vec::new(),
            initial: Initial::He,
            logit_scale: None,
        }
    }

    #[test]
    fn networks_have_the_activations_of_the_papers() {
        for (kind, side, expected) in [
            (Kind::Resnet18, 32, 557_056),
            (Kind::Wrn22x8, 32, 1_392_640),
            (Kind::Resnet32, 32, 303_104),
            (Kind::Resnet20, 32, 188_416),
            (Kind::Lean9, 32, 81_560),
            (Kind::Lean12, 32, 179_736),
            (Kind::Resnet10, 32, 311_296),
            (Kind::Resnet34, 32, 966_656),
            (Kind::Resnet18, 64, 4 * 557_056),
        ] {
            let network = Network::new(&named(kind), [3, side, side], 10).unwrap();
            assert_eq!(network.positions(), expected, "{kind:?} at {side}");
        }
    }

    #[test]
    fn multiply_adds_are_those_of_the_compilers_networks() {
        use pi_ir::builders::{self, Policy};
        use pi_ir::count::graph_multiply_adds;
        let cases = [
            (Kind::Resnet10, builders::resnet10(32, 10, Policy::Relu, 1)),
            (Kind::Resnet50, builders::resnet50(32, 10, Policy::Relu, 1)),
            (Kind::Resnet20, builders::resnet20(32, 10, Policy::Relu, 1)),
            (Kind::Wrn22x8, builders::wrn22_8(32, 10, Policy::Relu, 1)),
            (Kind::Lean9, builders::lean9(32, 10, Policy::Relu, 1)),
        ];
        for (kind, graph) in cases {
            let network = Network::new(&named(kind), [3, 32, 32], 10).unwrap();
            let expected = graph_multiply_adds(&graph);
            assert_eq!(network.multiply_adds() as u64, expected, "{kind:?}");
        }
    }

    #[test]
    fn width_scales_channels_and_one_channel_images_are_fine() {
        let config = NetworkConfig {
            width: 0.5,
            ..named(Kind::Resnet20)
        };
        let network = Network::new(&config, [1, 32, 32], 100).unwrap();
        assert_eq!(network.positions(), 188_416 / 2);
        assert_eq!(network.nodes.last().unwrap().shape, [100, 1, 1]);
    }

    #[test]
    fn wrong_sizes_are_refused_with_the_key() {
        let refused = |config: &NetworkConfig, input| {
            Network::new(config, input, 10)
                .expect_err("a wrong size")
                .to_string()
        };
        let config = named(Kind::Residual);
        assert!(refused(&config, [3, 32, 32]).contains("network.stem"));
        let config = NetworkConfig {
            width: 0.0,
            ..named(Kind::Resnet20)
        };
        assert!(refused(&config, [3, 32, 32]).contains("network.width"));
        assert!(refused(&named(Kind::Resnet18), [3, 4, 4]).contains("one pixel"));
        assert!(refused(&named(Kind::Lean9), [3, 8, 8]).contains("16x16"));
        let config = NetworkConfig {
            logit_scale: Some(0.0),
            ..named(Kind::Lean12)
        };
        assert!(refused(&config, [3, 32, 32]).contains("network.logit_scale"));
        let mut config = named(Kind::Resnet20);
        config.kernels.push(KernelRule {
            convolutions: "stage9*".to_owned(),
            by: PolynomialKernel::RPkn,
        });
        assert!(refused(&config, [3, 32, 32]).contains("stage9"));
    }
}
