// y[m, n] = act(x w^T + b) + residual with few columns: x [m, k] is read once, which is what it costs. A thread has whole
// rows; the weights lie in shared memory, in f32.
//
// Macros: TX, TW elements of x and of w [n, k]; TY, TBIAS, TRESIDUAL, BIAS, RESIDUAL, ACTIVATION as epilogue.cuh says,
// without scales; WIDTH n; VECTOR neighbours of a row of x at a time, which divide k.
#include "epilogue.cuh"
#include "vectors.cuh"

const u32 THREADS = 256, AHEAD = 4;

extern "C" __global__ void __launch_bounds__(THREADS, 2) product_narrow(
    const TX* __restrict__ x, const TW* __restrict__ w, TY* __restrict__ y, const TBIAS* __restrict__ bias,
    const TRESIDUAL* __restrict__ residual, const u32 m, const u32 k)
{
    extern __shared__ __align__(16) float weights[];
    wait_for_launch_before();
    for (u32 i = threadIdx.x; i < WIDTH * k; i += THREADS) weights[i] = load(w + i);
    __syncthreads();
    const Epilogue epilogue{nullptr, nullptr, bias, residual};
    for (u32 row = blockIdx.x * THREADS + threadIdx.x; row < m; row += gridDim.x * THREADS) {
        const TX* from = x + (i64)row * k;
        float sums[WIDTH] = {};
        for (u32 first = 0; first < k; first += AHEAD * VECTOR) {
            float values[AHEAD][VECTOR];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++)
                if (first + i * VECTOR < k) load_neighbours(values[i], from + first + i * VECTOR);
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                if (first + i * VECTOR >= k) break;
#pragma unroll
                for (u32 column = 0; column < WIDTH; column++)
#pragma unroll
                    for (u32 j = 0; j < VECTOR; j++)
                        sums[column] = fmaf(values[i][j], weights[column * k + first + i * VECTOR + j], sums[column]);
            }
        }
        float results[WIDTH];
#pragma unroll
        for (u32 column = 0; column < WIDTH; column++)
            results[column] = epilogue.of(sums[column], row, column, (i64)row * WIDTH + column);
#if WIDTH & (WIDTH - 1)
#pragma unroll
        for (u32 column = 0; column < WIDTH; column++) store(y + (i64)row * WIDTH + column, results[column]);
#else
        store_neighbours(y + (i64)row * WIDTH, results);
#endif
    }
}
