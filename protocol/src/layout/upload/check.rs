//! What makes a layout legal by itself and for each of its consumers.

use super::Taps;
use crate::layout::{Consumer, MAX_CHANNELS, MAX_ELEMENTS, MAX_SIDE};
use pi_ir::{Layout, Shape};

pub(super) fn check_layout(
    layout: &Layout,
    shape: Shape,
    ring_degree: u32,
    bundles: u32,
) -> Vec<String> {
    let mut faults = Vec::new();
    let side = |n: u32| (1..=MAX_SIDE).contains(&n);
    if !layout.group.is_power_of_two() || layout.group > ring_degree {
        faults.push(format!(
            "group {} is not a power of two up to {ring_degree}",
            layout.group
        ));
    }
    for (what, (a, b)) in [
        ("stride", layout.stride),
        ("window", layout.window),
        ("tile", layout.tile),
    ] {
        if !side(a) || !side(b) {
            faults.push(format!("{what} {a}x{b} is not within 1..={MAX_SIDE}"));
        }
    }
    let p = layout.padding;
    if [p.top, p.left, p.bottom, p.right]
        .iter()
        .any(|&n| n > MAX_SIDE)
    {
        faults.push(format!("padding {p:?} exceeds {MAX_SIDE}"));
    }
    if layout.row_stride < layout.tile.1 {
        faults.push(format!(
            "row stride {} is below the tile's width {}: outputs would coincide",
            layout.row_stride, layout.tile.1
        ));
    }
    let used = u128::from(layout.block) * u128::from(layout.blocks) * u128::from(layout.group);
    if used == 0 || used > u128::from(ring_degree) {
        faults.push(format!(
            "{} blocks of {} positions of {} channels do not fit degree {ring_degree}",
            layout.blocks, layout.block, layout.group
        ));
    }
    let channels = u64::from(layout.stride.0) * u64::from(layout.stride.1) * u64::from(shape.c);
    if channels == 0 || channels > MAX_CHANNELS {
        faults.push(format!(
            "{channels} virtual channels, expected 1..={MAX_CHANNELS}"
        ));
    }
    let sides = side(shape.h) && side(shape.w);
    let elements =
        u128::from(shape.c) * u128::from(shape.h) * u128::from(shape.w) * u128::from(bundles);
    if !sides || elements > MAX_ELEMENTS {
        faults.push(format!("shape {shape:?} is out of bounds"));
    }
    faults
}

/// Checks that the convolution is one on this layout's virtual map.
pub(super) fn check_consumer(
    layout: &Layout,
    shape: Shape,
    consumer: &Consumer<'_>,
) -> Result<(), String> {
    let Consumer { conv, answer, .. } = consumer;
    let name = format!("layer {} term {}", answer.layer, answer.term);
    if conv.stride != layout.stride {
        return Err(format!(
            "{name} has stride {:?}, the layout {:?}",
            conv.stride, layout.stride
        ));
    }
    if conv.padding.top > layout.padding.top || conv.padding.left > layout.padding.left {
        return Err(format!(
            "{name} pads {} rows and {} columns, the layout {} and {}",
            conv.padding.top, conv.padding.left, layout.padding.top, layout.padding.left
        ));
    }
    let vertical = Taps::vertical(layout, conv);
    let horizontal = Taps::horizontal(layout, conv);
    if vertical.window() > layout.window.0 || horizontal.window() > layout.window.1 {
        return Err(format!(
            "{name} needs a window of {}x{}, the layout has {}x{}",
            vertical.window(),
            horizontal.window(),
            layout.window.0,
            layout.window.1
        ));
    }
    let padding = layout.padding;
    let height = (shape.h + padding.top + padding.bottom).div_ceil(layout.stride.0);
    let width = (shape.w + padding.left + padding.right).div_ceil(layout.stride.1);
    if consumer.output.h + vertical.window() - 1 > height
        || consumer.output.w + horizontal.window() - 1 > width
    {
        return Err(format!(
            "{name} reads {}x{} virtual positions, the padded map has {height}x{width}",
            consumer.output.h + vertical.window() - 1,
            consumer.output.w + horizontal.window() - 1
        ));
    }
    Ok(())
}
