// y[n, o, i*stride + k*dilation - pad] += x[n, c, i] * w[c, o, k], plus b, as a gather: every element of y looks for
// the pixels and taps that meet there. f32 sums.
// Where stamps do not overlap, a product of matrices comes first, and `place_stamps` gives every number its place.
//
// Macros: TX the elements of x and w, TB those of b, TR the result's; INDEX u32 or u64, which counts the result.
#include "types.cuh"

// Sizes: `channels` and `outputs` of one group; two numbers are rows, then columns.
struct Geometry {
    i32 groups, channels, outputs, height, width, result_height, result_width, kernel[2], stride[2], pad[2], dilation[2];
};

extern "C" __global__ void __launch_bounds__(256) conv_transpose2d(
    const TX* __restrict__ x, const TX* __restrict__ w, const TB* __restrict__ b, TR* __restrict__ y,
    const __grid_constant__ Geometry g, const i64 n)
{
    wait_for_launch_before();
    const int taps = g.kernel[0] * g.kernel[1];
    const i64 plane = (i64)g.height * g.width;
    const INDEX columns = g.result_width, rows = g.result_height, outputs = g.groups * g.outputs;
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        INDEX rest = at / columns;
        const int column = (int)(at - rest * columns);
        INDEX next = rest / rows;
        const int row = (int)(rest - next * rows);
        const i64 image = next / outputs;
        const int output = (int)(next - (INDEX)image * outputs);
        const int group = output / g.outputs, within = output - group * g.outputs;
        const TX* from = x + ((image * g.groups + group) * g.channels) * plane;
        const TX* weights = w + ((i64)group * g.channels * g.outputs + within) * taps;
        float sum = 0.f;
        for (int ky = 0; ky < g.kernel[0]; ky++) {
            const int above = row + g.pad[0] - ky * g.dilation[0], i = above / g.stride[0];
            if (above < 0 || i * g.stride[0] != above || i >= g.height) continue;
            for (int kx = 0; kx < g.kernel[1]; kx++) {
                const int left = column + g.pad[1] - kx * g.dilation[1], j = left / g.stride[1];
                if (left < 0 || j * g.stride[1] != left || j >= g.width) continue;
                const TX* pixel = from + (i64)i * g.width + j;
                const TX* weight = weights + ky * g.kernel[1] + kx;
#pragma unroll 4
                for (int c = 0; c < g.channels; c++)
                    sum += load(pixel + c * plane) * load(weight + (i64)c * g.outputs * taps);
            }
        }
        store(y + at, b ? sum + load(b + output) : sum);
    }
}

// Products [images * height * width, outputs * kh * kw] of all pixels, each to its place in the stamp of its pixel.
extern "C" __global__ void __launch_bounds__(256) place_stamps(
    const float* __restrict__ products, const TB* __restrict__ b, TR* __restrict__ y, const i32 outputs,
    const i32 height, const i32 width, const i32 kh, const i32 kw, const i64 n)
{
    wait_for_launch_before();
    const INDEX columns = (INDEX)width * kw, rows = (INDEX)height * kh;
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        const INDEX line = at / columns, column = at - line * columns;
        const INDEX plane = line / rows, row = line - plane * rows;
        const i64 image = plane / outputs;
        const int output = (int)(plane - (INDEX)image * outputs);
        const i64 pixel = (image * height + row / kh) * width + column / kw;
        const int tap = (int)(row % kh) * kw + (int)(column % kw);
        const float product = products[(pixel * outputs + output) * (kh * kw) + tap];
        store(y + at, b ? product + load(b + output) : product);
    }
}
