// Products of a warp by `mma.sync`, and the copies that feed them, on every architecture.
//
// Fragments, for lane 4g + t: A[16, 32 bytes] in a[0] row g, a[1] row g + 8, of the first 16 bytes of K, a[2], a[3] of
// the second, 4 bytes from byte 4t each; B[8, 32 bytes] in b[0], b[1] likewise, row g; D[16, 8] in d[0], d[1] row g,
// d[2], d[3] row g + 8, columns 2t and 2t + 1.
#pragma once
#include "shared.cuh"

// Sixteen bytes to shared memory, zeros unless `there`.
DEVICE void copy_chunk(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N committed groups of this thread are on their way.
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Calls use(slice) for every slice, with the copies of EARLY slices behind it on their way; fetch(slice) begins those of
// one and commits them.
template <u32 EARLY, class Fetch, class Use> DEVICE void staged(u32 slices, Fetch fetch, Use use) {
#pragma unroll
    for (u32 i = 0; i < EARLY; i++) {
        if (i < slices) fetch(i);
        else copies_commit();
    }
    for (u32 slice = 0; slice < slices; slice++) {
        copies_wait<EARLY - 1>();
        __syncthreads();
        if (slice + EARLY < slices) fetch(slice + EARLY);
        else copies_commit();
        use(slice);
    }
}

DEVICE void store_chunk(u32 to, const u32 (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
        ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Four 8x8 matrices of 16-bit elements: lanes 0-7 address the rows of the first, 8-15 of the second, and so on.
DEVICE void load_matrices(u32 (&d)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(at) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&d)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(at) : "memory");
}

// D += A B by the type of the elements; e4m3 from Ada on.
template <class T> struct Mma;
#define MMA_FORM(T, SHAPE) \
    template <> struct Mma<T> { \
        static __device__ __forceinline__ void add(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { \
            asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
        } \
    };
MMA_FORM(bf16_t, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA_FORM(half_t, "m16n8k16.row.col.f32.f16.f16.f32")
#if __CUDA_ARCH__ >= 890
MMA_FORM(e4m3_t, "m16n8k32.row.col.f32.e4m3.e4m3.f32")
// With sums of f16, d[0] a pair of row g, d[1] of row g + 8: at twice the speed on cards for the desk.
DEVICE void add_halves(u32& d0, u32& d1, const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"
        : "+r"(d0), "+r"(d1) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Adds the products of tiles of 16 rows and of pairs of tiles of 8 columns.
template <class T, u32 R, u32 C>
DEVICE void multiply(float (&sums)[R][2 * C][4], const u32 (&left)[R][4], const u32 (&right)[C][4]) {
#pragma unroll
    for (u32 i = 0; i < R; i++)
#pragma unroll
        for (u32 j = 0; j < 2 * C; j++)
            Mma<T>::add(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
}
