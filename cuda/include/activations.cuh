// Activations: exact to f32, and for results of 16 or 8 bits.
#pragma once
#include "types.cuh"

DEVICE float linear(float x) { return x; }
DEVICE float relu(float x) { return fmaxf(x, 0.f); }
DEVICE float gelu(float x) { return 0.5f * x * erfcf(-0.70710678118654752f * x); }
DEVICE float gelu_tanh(float x) {
    return x / (1.f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
}
DEVICE float silu(float x) { return x / (1.f + expf(-x)); }

// For results of 16 bits: errors below 1e-5 of the largest value.
DEVICE float exp2_fast(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float reciprocal_fast(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float silu_fast(float x) { return x * reciprocal_fast(1.f + exp2_fast(-1.4426950408889634f * x)); }
DEVICE float gelu_tanh_fast(float x) {
    return x * reciprocal_fast(1.f + exp2_fast(-2.3022081984f * (x + 0.044715f * x * x * x)));
}
// For results that are read as FP8: errors below 1e-3, one special function.
DEVICE float gelu_coarse(float x) {
    const float half = 0.5f * x, u = x * fmaf(0.0356774081f, x * x, 0.7978845608f);
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(u));
    return fmaf(half, t, half);
}
// erfc by Abramowitz and Stegun 7.1.26.
DEVICE float gelu_fast(float x) {
    const float z = 0.70710678118654752f * fabsf(x), t = reciprocal_fast(fmaf(0.3275911f, z, 1.f));
    const float p = t * fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1.061405429f, -1.453152027f), 1.421413741f), -0.284496736f),
        0.254829592f);
    const float tail = 0.5f * p * exp2_fast(-1.4426950408889634f * z * z);
    return x * (x > 0.f ? 1.f - tail : tail);
}
