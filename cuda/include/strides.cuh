// Row-major walks over tensors of up to 6 dimensions.
#pragma once
#include "types.cuh"

const int MAX_RANK = 6;

// How far an operand moves when an index of the result moves: 0 where it is broadcast. Dimensions stand outermost
// first; `rank` of them count.
struct Shape { i32 rank; u32 dims[MAX_RANK]; };
struct Strides { i64 of[MAX_RANK]; };

// The offset of the element that row-major position `at` of `shape` names.
template <class Index> DEVICE i64 offset(Index at, const Shape& shape, const Strides& strides) {
    i64 sum = 0;
#pragma unroll
    for (int i = MAX_RANK - 1; i >= 0; i--) {
        if (i < shape.rank) {
            const Index rest = at / shape.dims[i];
            sum += (i64)(at - rest * shape.dims[i]) * strides.of[i];
            at = rest;
        }
    }
    return sum;
}

template <class T> struct Pair { T first, second; };

// The offsets under two strides.
template <class Index>
DEVICE Pair<i64> offsets(Index at, const Shape& shape, const Strides& first, const Strides& second) {
    Pair<i64> sums = {0, 0};
#pragma unroll
    for (int i = MAX_RANK - 1; i >= 0; i--) {
        if (i < shape.rank) {
            const Index rest = at / shape.dims[i];
            const i64 position = (i64)(at - rest * shape.dims[i]);
            sums.first += position * first.of[i];
            sums.second += position * second.of[i];
            at = rest;
        }
    }
    return sums;
}
