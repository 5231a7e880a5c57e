// Two elements at once.
#pragma once
#include "types.cuh"

// Two neighbours at once; `p` is aligned to both.
DEVICE float2 load_pair(const float* p) { return *(const float2*)p; }
template <class T> DEVICE float2 load_pair(const T* p) {
    const u32 both = *(const u32*)p;
    return {widen(T{(u16)both}), widen(T{(u16)(both >> 16)})};
}
// Two neighbours rounded to 16 bits each.
template <class T> struct Pair;
template <> struct Pair<bf16_t> {
    static __device__ __forceinline__ u32 of(float a, float b) {
        u32 both;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
        return both;
    }
};
template <> struct Pair<half_t> {
    static __device__ __forceinline__ u32 of(float a, float b) {
        u32 both;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(b), "f"(a));
        return both;
    }
};
// And to e4m3, 8 bits each.
template <> struct Pair<e4m3_t> {
    static __device__ __forceinline__ u32 of(float a, float b) {
#if __CUDA_ARCH__ >= 890
        u16 both;
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(b), "f"(a));
        return both;
#else
        e4m3_t low, high;
        narrow(low, a);
        narrow(high, b);
        return low.bits | (u32)high.bits << 8;
#endif
    }
};
