// Pairs of f16 in a register, computed together.
#pragma once
#include "types.cuh"

DEVICE u32 half_fma(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
// Into [0, 1]; not a number becomes 0.
DEVICE u32 half_fma_saturated(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.sat.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
DEVICE u32 half_mul(u32 a, u32 b) { u32 y; asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }
DEVICE u32 half_sub(u32 a, u32 b) { u32 y; asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }
// Of a number and what is none, the number.
DEVICE u32 half_max(u32 a, u32 b) { u32 y; asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }
DEVICE u32 half_min(u32 a, u32 b) { u32 y; asm("min.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b)); return y; }

// The lower half (0) or the upper (1) twice: free where an instruction above reads it.
DEVICE u32 half_twice(u32 x, u32 which) {
    u32 y;
    if (which) asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\nmov.b32 %0, {h, h};\n}" : "=r"(y) : "r"(x));
    else asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %1;\nmov.b32 %0, {l, l};\n}" : "=r"(y) : "r"(x));
    return y;
}
DEVICE u32 half_pair(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
DEVICE float2 half_widen(u32 x) { return {widen(half_t{(u16)x}), widen(half_t{(u16)(x >> 16)})}; }
