// What stands behind every product: y = act(sum * scales + bias) + residual, rounded once.
//
// Macros: ACTIVATION a function of activations.cuh; XSCALE and WSCALE, what shares a scale in the left and the right
// operand: NONE, ROW, TENSOR or COLUMNS; BIAS, RESIDUAL 1 where there is one; TBIAS, TRESIDUAL, TY element types.
#pragma once
#include "activations.cuh"
#include "pairs.cuh"

#define NONE 0
#define ROW 1
#define TENSOR 2
#define COLUMNS 3

struct Epilogue {
    const float* x_scales;
    const float* w_scales;
    const TBIAS* bias;
    const TRESIDUAL* residual;

    // Of the sum in this row and column; `at` is its position in the result. Scales of COLUMNS are in the sum already.
    __device__ __forceinline__ float of(float sum, i64 row, i64 column, i64 at) const {
        if (XSCALE == ROW) sum *= x_scales[row];
        if (XSCALE == TENSOR) sum *= x_scales[0];
        if (WSCALE == ROW) sum *= w_scales[column];
        if (WSCALE == TENSOR) sum *= w_scales[0];
        if (BIAS) sum += load(bias + column);
        sum = ACTIVATION(sum);
        if (RESIDUAL) sum += load(residual + at);
        return sum;
    }
};
