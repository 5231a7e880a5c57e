//! Recognition: what exporters took apart becomes one operation again, one construct a file.

pub mod conv1x1;
pub mod dpt_resize;
pub mod layer_scale;
pub mod patch_conv;
pub mod residual;
pub mod transposed_conv;
