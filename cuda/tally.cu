// What is remarkable about x [n]: counts[0] elements that are not a number, counts[1] infinite ones, counts[2] FP8 codes
// of the largest magnitude. Added to what is there.
//
// Macros: TX the elements, a floating-point type.
#include "types.cuh"

template <class X> struct Largest { static __device__ bool is(X) { return false; } };
template <> struct Largest<e4m3_t> { static __device__ bool is(e4m3_t x) { return (x.bits & 0x7f) == 0x7e; } };
template <> struct Largest<e5m2_t> { static __device__ bool is(e5m2_t x) { return (x.bits & 0x7f) == 0x7b; } };

extern "C" __global__ void __launch_bounds__(256) tally(const TX* __restrict__ x, u64* __restrict__ counts, const i64 n) {
    wait_for_launch_before();
    u32 nan = 0, infinite = 0, largest = 0;
    for (i64 at = blockIdx.x * 256ll + threadIdx.x; at < n; at += gridDim.x * 256ll) {
        const auto value = load(x + at);
        nan += value != value;
        infinite += value == value && value - value != 0;
        largest += Largest<TX>::is(x[at]);
    }
    nan = __reduce_add_sync(~0u, nan);
    infinite = __reduce_add_sync(~0u, infinite);
    largest = __reduce_add_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) {
        if (nan) atomicAdd(counts, (u64)nan);
        if (infinite) atomicAdd(counts + 1, (u64)infinite);
        if (largest) atomicAdd(counts + 2, (u64)largest);
    }
}
