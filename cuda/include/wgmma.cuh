// Products of a warpgroup (128 threads), on Hopper: D[64, N] += A[64, K] B[N, K]ᵀ with f32 sums; K is 32 for FP8, 16
// for 16-bit elements. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate".
//
// Thread 32w + 4g + t of the warpgroup holds d[4j], d[4j + 1] = D[16w + g][8j + 2t], D[16w + g][8j + 2t + 1], and
// d[4j + 2], d[4j + 3] the same columns of row 16w + g + 8. A in registers: a[0] row g, a[1] row g + 8, of the first
// half of K; a[2], a[3] of the second; 16-bit columns 2t and 2t + 1 of the half, FP8 columns 4t to 4t + 3.
#pragma once
#include "shared.cuh"

// Before the first product of a batch, and whenever registers of D or A were touched in between.
DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N committed batches run.
template <int N> DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving reads and writes of accumulators across this point.
template <int N> DEVICE void pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> DEVICE void pin(u32 (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

// Descriptors of operands in shared memory. Rows of one swizzle span along K (128 or 64 bytes), tile bases aligned to
// 8 rows. The next 32 bytes of K: + 2. The next 8 rows: + 8 * span / 16.
DEVICE u64 operand_k128(u32 at) { return (u64)((at & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
DEVICE u64 operand_k64(u32 at) { return (u64)((at & 0x3FFFF) >> 4) | 1ull << 16 | 32ull << 32 | 2ull << 62; }
// Bytes as chunks of 16 along K: 8 neighbouring rows of a chunk are 128 bytes in one piece, `next_chunk` bytes lie from
// a chunk to the next along K, `next_rows` to the next 8 rows. The next 32 bytes of K: + next_chunk / 8.
DEVICE u64 operand_chunks(u32 at, u32 next_chunk, u32 next_rows) {
    return (u64)((at & 0x3FFFF) >> 4) | (u64)(next_chunk >> 4) << 16 | (u64)(next_rows >> 4) << 32;
}
// 16-bit elements stored [K][64 columns] of 128 bytes a row; `step` bytes from 64 columns to the next 64, `next_rows`
// from 8 of K to the next 8. The next 16 of K: + next_rows / 8, 128 where rows are in one piece.
DEVICE u64 operand_mn128(u32 at, u32 step, u32 next_rows = 8 * 128) {
    return (u64)((at & 0x3FFFF) >> 4) | (u64)(step >> 4) << 16 | (u64)(next_rows >> 4) << 32 | 1ull << 62;
}
// The same of [K][32 columns] of 64 bytes a row.
DEVICE u64 operand_mn64(u32 at, u32 step, u32 next_rows = 8 * 64) {
    return (u64)((at & 0x3FFFF) >> 4) | (u64)(step >> 4) << 16 | (u64)(next_rows >> 4) << 32 | 2ull << 62;
}

// The forms for N columns. `add` false overwrites D. TRANSPOSED: B is stored [K][N] (`operand_mn128`, `operand_mn64`);
// LEFT_TRANSPOSED: A is stored [K][64] likewise.
template <int N> struct Wgmma;

#define WGMMA_D0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_D1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_D5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_D7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8), WGMMA_4(i + 12)

#define WGMMA_NAMES1 WGMMA_D0
#define WGMMA_NAMES2 WGMMA_D0 ", " WGMMA_D1
#define WGMMA_NAMES3 WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2
#define WGMMA_NAMES4 WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3
#define WGMMA_NAMES5 WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3 ", " WGMMA_D4
#define WGMMA_NAMES6 WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3 ", " WGMMA_D4 ", " WGMMA_D5
#define WGMMA_NAMES7 WGMMA_D0 ", " WGMMA_D1 ", " WGMMA_D2 ", " WGMMA_D3 ", " WGMMA_D4 ", " WGMMA_D5 ", " WGMMA_D6
#define WGMMA_NAMES8 WGMMA_NAMES7 ", " WGMMA_D7
#define WGMMA_SUMS1 WGMMA_16(0)
#define WGMMA_SUMS2 WGMMA_SUMS1, WGMMA_16(16)
#define WGMMA_SUMS3 WGMMA_SUMS2, WGMMA_16(32)
#define WGMMA_SUMS4 WGMMA_SUMS3, WGMMA_16(48)
#define WGMMA_SUMS5 WGMMA_SUMS4, WGMMA_16(64)
#define WGMMA_SUMS6 WGMMA_SUMS5, WGMMA_16(80)
#define WGMMA_SUMS7 WGMMA_SUMS6, WGMMA_16(96)
#define WGMMA_SUMS8 WGMMA_SUMS7, WGMMA_16(112)

// One instruction: `p` is the predicate that adds to D.
#define WGMMA_TEXT(SHAPE, NAMES, INPUTS, P) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" P ", 0;\nwgmma.mma_async.sync.aligned." SHAPE " {" NAMES "}, " INPUTS ";\n}"

// 16-bit elements: A in shared memory, A in registers. I0.. are the numbers of the operands behind D.
#define WGMMA_WIDE(NAME, TYPE, N, NAMES, SUMS, I0, I1, I2, I3, I4, I5, I6) \
    template <int TRANSPOSED, int LEFT_TRANSPOSED = 0> DEVICE void NAME(float (&d)[N / 2], u64 a, u64 b, bool add) { \
        asm volatile(WGMMA_TEXT("m64n" #N "k16.f32." TYPE "." TYPE, NAMES, \
                "%" I0 ", %" I1 ", p, 1, 1, %" I4 ", %" I3, I2) \
            : SUMS : "l"(a), "l"(b), "r"((i32)add), "n"(TRANSPOSED), "n"(LEFT_TRANSPOSED)); \
    } \
    template <int TRANSPOSED> DEVICE void NAME(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) { \
        asm volatile(WGMMA_TEXT("m64n" #N "k16.f32." TYPE "." TYPE, NAMES, \
                "{%" I0 ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", p, 1, 1, %" I6, I5) \
            : SUMS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((i32)add), "n"(TRANSPOSED)); \
    }

#define WGMMA_FORMS(N, BLOCKS, I0, I1, I2, I3, I4, I5, I6) \
    template <> struct Wgmma<N> { \
        DEVICE void e4m3(float (&d)[N / 2], u64 a, u64 b, bool add) { \
            asm volatile(WGMMA_TEXT("m64n" #N "k32.f32.e4m3.e4m3", WGMMA_NAMES##BLOCKS, \
                    "%" I0 ", %" I1 ", p, 1, 1", I2) \
                : WGMMA_SUMS##BLOCKS : "l"(a), "l"(b), "r"((i32)add)); \
        } \
        DEVICE void e4m3(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) { \
            asm volatile(WGMMA_TEXT("m64n" #N "k32.f32.e4m3.e4m3", WGMMA_NAMES##BLOCKS, \
                    "{%" I0 ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", p, 1, 1", I5) \
                : WGMMA_SUMS##BLOCKS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((i32)add)); \
        } \
        WGMMA_WIDE(bf16, "bf16", N, WGMMA_NAMES##BLOCKS, WGMMA_SUMS##BLOCKS, I0, I1, I2, I3, I4, I5, I6) \
        WGMMA_WIDE(f16, "f16", N, WGMMA_NAMES##BLOCKS, WGMMA_SUMS##BLOCKS, I0, I1, I2, I3, I4, I5, I6) \
    };

WGMMA_FORMS(32, 1, "16", "17", "18", "19", "20", "21", "22")
WGMMA_FORMS(64, 2, "32", "33", "34", "35", "36", "37", "38")
WGMMA_FORMS(96, 3, "48", "49", "50", "51", "52", "53", "54")
WGMMA_FORMS(128, 4, "64", "65", "66", "67", "68", "69", "70")
WGMMA_FORMS(160, 5, "80", "81", "82", "83", "84", "85", "86")
WGMMA_FORMS(192, 6, "96", "97", "98", "99", "100", "101", "102")
WGMMA_FORMS(224, 7, "112", "113", "114", "115", "116", "117", "118")
WGMMA_FORMS(256, 8, "128", "129", "130", "131", "132", "133", "134")

// Products of e4m3 besides, A in registers: widths of 8 columns more, and sums in pairs of f16: `halves` has in d[2j]
// columns 8j + 2t and 8j + 2t + 1 of row 16w + g, in d[2j + 1] those of row 16w + g + 8.
#define WGMMA_NAMES72 WGMMA_NAMES2 ", %32, %33, %34, %35"
#define WGMMA_NAMES136 WGMMA_NAMES4 ", %64, %65, %66, %67"
#define WGMMA_SUMS72 WGMMA_SUMS2, WGMMA_4(32)
#define WGMMA_SUMS136 WGMMA_SUMS4, WGMMA_4(64)
#define WGMMA_MORE(N, I0, I1, I2, I3, I4, I5) \
    template <> struct Wgmma<N> { \
        DEVICE void e4m3(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) { \
            asm volatile(WGMMA_TEXT("m64n" #N "k32.f32.e4m3.e4m3", WGMMA_NAMES##N, \
                    "{%" I0 ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", p, 1, 1", I5) \
                : WGMMA_SUMS##N : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((i32)add)); \
        } \
    };
WGMMA_MORE(72, "36", "37", "38", "39", "40", "41")
WGMMA_MORE(136, "68", "69", "70", "71", "72", "73")

#define WGMMA_WORDS4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WGMMA_WORDS16(i) WGMMA_WORDS4(i), WGMMA_WORDS4(i + 4), WGMMA_WORDS4(i + 8), WGMMA_WORDS4(i + 12)
#define WGMMA_ALL1 WGMMA_WORDS16(0)
#define WGMMA_ALL2 WGMMA_ALL1, WGMMA_WORDS16(16)
#define WGMMA_ALL3 WGMMA_ALL2, WGMMA_WORDS16(32)
#define WGMMA_ALL4 WGMMA_ALL3, WGMMA_WORDS16(48)
template <int N> struct HalfWgmma;
#define WGMMA_HALVES(N, NAMES, WORDS, I0, I1, I2, I3, I4, I5) \
    template <> struct HalfWgmma<N> { \
        DEVICE void e4m3(u32 (&d)[N / 4], const u32 (&a)[4], u64 b, bool add) { \
            asm volatile(WGMMA_TEXT("m64n" #N "k32.f16.e4m3.e4m3", NAMES, \
                    "{%" I0 ", %" I1 ", %" I2 ", %" I3 "}, %" I4 ", p, 1, 1", I5) \
                : WORDS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((i32)add)); \
        } \
    };
WGMMA_HALVES(128, WGMMA_NAMES2, WGMMA_ALL2, "32", "33", "34", "35", "36", "37")
WGMMA_HALVES(192, WGMMA_NAMES3, WGMMA_ALL3, "48", "49", "50", "51", "52", "53")
WGMMA_HALVES(256, WGMMA_NAMES4, WGMMA_ALL4, "64", "65", "66", "67", "68", "69")

// One step of 32 bytes of K by element type, both operands in shared memory; e4m3 has no TRANSPOSED form.
template <class T> struct Step;
template <> struct Step<e4m3_t> {
    template <int HALF> static __device__ __forceinline__ void add(float (&d)[HALF], u64 a, u64 b, bool add) {
        Wgmma<2 * HALF>::e4m3(d, a, b, add);
    }
};
template <> struct Step<bf16_t> {
    template <int TRANSPOSED = 0, int LEFT_TRANSPOSED = 0, int HALF>
    static __device__ __forceinline__ void add(float (&d)[HALF], u64 a, u64 b, bool add) {
        Wgmma<2 * HALF>::template bf16<TRANSPOSED, LEFT_TRANSPOSED>(d, a, b, add);
    }
};
template <> struct Step<half_t> {
    template <int TRANSPOSED = 0, int LEFT_TRANSPOSED = 0, int HALF>
    static __device__ __forceinline__ void add(float (&d)[HALF], u64 a, u64 b, bool add) {
        Wgmma<2 * HALF>::template f16<TRANSPOSED, LEFT_TRANSPOSED>(d, a, b, add);
    }
};
