// y[n, o, i*stride + k*dilation - pad] += x[n, c, i] * w[c, o, k], plus b, a thread an element of y: as a gather, which
// looks for the pixels and taps that meet there; or from products of all pixels and taps, where but one meets there.

struct Sizes {
    elements: u32,
    // Of one group.
    channels: u32,
    outputs: u32,
    groups: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel_y: u32,
    kernel_x: u32,
    stride_y: u32,
    stride_x: u32,
    dilation_y: u32,
    dilation_x: u32,
    pad_y: u32,
    pad_x: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> w: array<u32>;
fn w_at(i: u32) -> f32 { return bitcast<f32>(w[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: bias
// Of an output channel of all groups.
fn bias_of(output: u32) -> f32 { return 0.0; }
//: end

//: value
fn value_of(image: u32, output: u32, row: u32, column: u32) -> f32 {
    let group = output / sizes.outputs;
    let area = sizes.height * sizes.width;
    let taps = sizes.kernel_y * sizes.kernel_x;
    let pixels = (image * sizes.groups + group) * sizes.channels * area;
    let weights = (group * sizes.channels * sizes.outputs + output % sizes.outputs) * taps;
    var sum = 0.0;
    for (var ky = 0u; ky < sizes.kernel_y; ky++) {
        // What would lie above wraps to a row past the end.
        let above = row + sizes.pad_y - ky * sizes.dilation_y;
        let i = above / sizes.stride_y;
        if i * sizes.stride_y != above || i >= sizes.height || above > row + sizes.pad_y { continue; }
        for (var kx = 0u; kx < sizes.kernel_x; kx++) {
            let before = column + sizes.pad_x - kx * sizes.dilation_x;
            let j = before / sizes.stride_x;
            if j * sizes.stride_x != before || j >= sizes.width || before > column + sizes.pad_x { continue; }
            let pixel = pixels + i * sizes.width + j;
            let weight = weights + ky * sizes.kernel_x + kx;
            for (var c = 0u; c < sizes.channels; c++) {
                sum = fma(x_at(pixel + c * area), w_at(weight + c * sizes.outputs * taps), sum);
            }
        }
    }
    return sum;
}
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at >= sizes.elements { return; }
    let column = at % sizes.out_width;
    let row = at / sizes.out_width % sizes.out_height;
    let plane = at / (sizes.out_width * sizes.out_height);
    let output = plane % (sizes.groups * sizes.outputs);
    let image = plane / (sizes.groups * sizes.outputs);
    y_set(at, value_of(image, output, row, column) + bias_of(output));
}
