// Neighbouring elements loaded and stored by 16 bytes, widened and rounded on the way.
#pragma once
#include "pairs.cuh"

// As many neighbours as fit 16 bytes, or N.
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Neighbours { T of[N]; };

// N neighbours at an address that is aligned to all of them, or to 16 bytes if they are more.
template <int N, class T> DEVICE void load_neighbours(float (&y)[N], const T* p) {
    const Neighbours<T, N> all = *(const Neighbours<T, N>*)p;
#pragma unroll
    for (int i = 0; i < N; i++) y[i] = widen(all.of[i]);
}
// The same to memory, rounded.
template <int N, class T> DEVICE void store_neighbours(T* p, const float (&y)[N]) {
    Neighbours<T, N> all;
#pragma unroll
    for (int i = 0; i < N; i++) narrow(all.of[i], y[i]);
    *(Neighbours<T, N>*)p = all;
}
// e4m3, two at a time.
template <int N> DEVICE void store_neighbours(e4m3_t* p, const float (&y)[N]) {
    Neighbours<e4m3_t, N> all;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        if (i + 1 < N) {
            const u32 both = Pair<e4m3_t>::of(y[i], y[i + 1]);
            all.of[i].bits = (u8)both;
            all.of[i + 1].bits = (u8)(both >> 8);
        } else {
            narrow(all.of[i], y[i]);
        }
    }
    *(Neighbours<e4m3_t, N>*)p = all;
}
