// Copies between dense tensors under any strides: what transpose, concat, slice, split, expand, split_heads and
// merge_heads have in common; and pad, a copy into a constant border. Elements are known by their size alone, and
// where all runs allow it, an "element" is a chunk of up to 16 bytes.
//
// Macros: ELEMENT u8, u16, u32, u64 or uint4; INDEX u32 or u64, which counts elements; TILE rows and columns of a tile
// that is transposed in shared memory.
#include "strides.cuh"

const int MAX_COPIES = 4;

// A box of `n` elements, starts and strides in elements.
struct Copy { i64 n, from_start, to_start; Strides from, to; Shape shape; u32 unused; };
struct Copies { Copy of[MAX_COPIES]; };

// Copy `blockIdx.y` of up to four.
extern "C" __global__ void __launch_bounds__(256) copy(
    const ELEMENT* __restrict__ from0, const ELEMENT* __restrict__ from1, const ELEMENT* __restrict__ from2,
    const ELEMENT* __restrict__ from3, ELEMENT* __restrict__ to0, ELEMENT* __restrict__ to1, ELEMENT* __restrict__ to2,
    ELEMENT* __restrict__ to3, const __grid_constant__ Copies copies)
{
    wait_for_launch_before();
    const int which = blockIdx.y;
    const Copy& copy = copies.of[which];
    const ELEMENT* from = (which < 2 ? which == 0 ? from0 : from1 : which == 2 ? from2 : from3) + copy.from_start;
    ELEMENT* to = (which < 2 ? which == 0 ? to0 : to1 : which == 2 ? to2 : to3) + copy.to_start;
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)copy.n; at += (INDEX)gridDim.x * 256u) {
        const Pair<i64> place = offsets(at, copy.shape, copy.from, copy.to);
        to[place.second] = from[place.first];
    }
}

// A copy whose innermost axis in the result (columns) is not the innermost one in the source (rows): square tiles
// through shared memory, so that both sides move whole sectors. `shape` walks the other axes; `tiles` counts all.
extern "C" __global__ void __launch_bounds__(256) transpose(
    const ELEMENT* __restrict__ from, ELEMENT* __restrict__ to, const Shape shape, const Strides from_strides,
    const Strides to_strides, const i64 rows, const i64 columns, const i64 from_column, const i64 to_row,
    const i64 tiles)
{
    wait_for_launch_before();
    __shared__ ELEMENT tile[TILE][TILE + 1];
    const INDEX down = (rows + TILE - 1) / TILE, across = (columns + TILE - 1) / TILE;
    const int lane = threadIdx.x % TILE, first = threadIdx.x / TILE;
    for (INDEX at = blockIdx.x; at < (INDEX)tiles; at += gridDim.x) {
        const INDEX plane = at / (down * across), within = at - plane * (down * across);
        const i64 row = (i64)(within / across) * TILE, column = (i64)(within % across) * TILE;
        const Pair<i64> start = offsets(plane, shape, from_strides, to_strides);
#pragma unroll 8
        for (int i = first; i < TILE; i += 256 / TILE) {
            if (row + lane < rows && column + i < columns)
                tile[i][lane] = from[start.first + row + lane + (column + i) * from_column];
        }
        __syncthreads();
#pragma unroll 8
        for (int i = first; i < TILE; i += 256 / TILE) {
            if (row + i < rows && column + lane < columns)
                to[start.second + (row + i) * to_row + column + lane] = tile[lane][i];
        }
        __syncthreads();
    }
}

// What `pad` knows of every dimension of the result: elements in front, and the size in x.
struct Border { i64 before[MAX_RANK], size[MAX_RANK]; };

extern "C" __global__ void __launch_bounds__(256) pad(
    const ELEMENT* __restrict__ x, ELEMENT* __restrict__ y, const Shape shape, const Strides x_strides,
    const Border border, const uint4 value, const i64 n)
{
    wait_for_launch_before();
    for (INDEX at = blockIdx.x * 256u + threadIdx.x; at < (INDEX)n; at += (INDEX)gridDim.x * 256u) {
        INDEX rest = at;
        i64 from = 0;
        bool inside = true;
#pragma unroll
        for (int i = MAX_RANK - 1; i >= 0; i--) {
            if (i < shape.rank) {
                const INDEX quotient = rest / shape.dims[i];
                const i64 position = (i64)(rest - quotient * shape.dims[i]) - border.before[i];
                inside = inside && position >= 0 && position < border.size[i];
                from += position * x_strides.of[i];
                rest = quotient;
            }
        }
        ELEMENT element = *reinterpret_cast<const ELEMENT*>(&value);
        if (inside) element = x[from];
        y[at] = element;
    }
}
