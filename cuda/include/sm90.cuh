// What Hopper adds: transaction barriers, the copy engine (TMA), proxies, warpgroups. One function an instruction.
// See wgmma.cuh for the products.
#pragma once
#include "shared.cuh"

// A tensor map by value: `const __grid_constant__ TensorMap map`.
struct alignas(64) TensorMap { u64 opaque[16]; };

// What the L2 cache keeps of a copy.
const u64 KEEP_NORMAL = 0x1000000000000000ull, KEEP_LITTLE = 0x12F0000000000000ull, KEEP_LONG = 0x14F0000000000000ull;

// True in one lane of a converged warp.
DEVICE bool elect_one() {
    u32 chosen;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(chosen));
    return chosen;
}
// Index of warp and warpgroup, uniform so that the compiler keeps what follows from it in uniform registers.
DEVICE u32 warp_index() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }
DEVICE u32 warpgroup_index() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }

// Transaction barriers, by shared address. A phase ends when all arrivals have come and all announced bytes landed.
// `barrier_wait` waits for the end of the phase with this parity; on a fresh barrier parity 1 has ended already.
DEVICE void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// The barriers of a ring: stages that so many arrivals fill, and so many free.
DEVICE void ring_init(u32 full, u32 empty, u32 stages, u32 frees, u32 fills = 1) {
    for (u32 i = 0; i < stages; i++) {
        barrier_init(full + 8 * i, fills);
        barrier_init(empty + 8 * i, frees);
    }
}
// Makes initialised barriers visible to the copy engine; __syncthreads() must follow.
DEVICE void barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives and announces bytes that copies will write.
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// One lane arrives for a warp that has written or read shared memory itself, behind __syncwarp(), which orders that for
// all of it. With EVERY_LANE each lane arrives: a tool that does not follow __syncwarp() sees the same order.
#ifndef EVERY_LANE
#define EVERY_LANE 0
#endif
const u32 WARP_ARRIVALS = EVERY_LANE ? 32 : 1;
DEVICE void warp_arrive(u32 barrier, u32 lane) {
    if (EVERY_LANE || lane == 0) barrier_arrive(barrier);
}
DEVICE void warp_expect(u32 barrier, u32 bytes, u32 lane) {
    if (lane == 0) barrier_expect(barrier, bytes);
    else if (EVERY_LANE) barrier_arrive(barrier);
}
DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "WAIT_%=:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}"
        ::"r"(barrier), "r"(parity) : "memory");
}

// Copies of boxes into shared memory; coordinates innermost first. The barrier counts whole boxes, also where they
// reach out of the tensor and zeros are written.
DEVICE void tensor_map_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory");
}
DEVICE void copy_box(u32 to, const TensorMap* map, u32 barrier, i32 c0, i32 c1, u64 keep) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4}], [%2], %5;"
        ::"r"(to), "l"((u64)map), "r"(barrier), "r"(c0), "r"(c1), "l"(keep) : "memory");
}
DEVICE void copy_box(u32 to, const TensorMap* map, u32 barrier, i32 c0, i32 c1, i32 c2, u64 keep) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;"
        ::"r"(to), "l"((u64)map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "l"(keep) : "memory");
}
DEVICE void copy_box(u32 to, const TensorMap* map, u32 barrier, i32 c0, i32 c1, i32 c2, i32 c3, u64 keep) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
        ::"r"(to), "l"((u64)map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(keep) : "memory");
}
// A column of pixels (the im2col mode): from pixel (c1, c2) of image c3 on through the map's box of pixels, row by row and
// image by image, each moved right and down; channels from c0.
DEVICE void copy_pixels(
    u32 to, const TensorMap* map, u32 barrier, i32 c0, i32 c1, i32 c2, i32 c3, u32 right, u32 down, u64 keep)
{
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;"
        ::"r"(to), "l"((u64)map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"((u16)right), "h"((u16)down),
          "l"(keep) : "memory");
}
// The line of 128 bytes around an address, into the L1 cache.
DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L1 [%0];" ::"l"((u64)p) : "memory"); }
// A plain run of bytes, a multiple of 16, both ends aligned to 16.
DEVICE void copy_bytes(u32 to, const void* from, u32 barrier, u32 bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"((u64)from), "r"(bytes), "r"(barrier) : "memory");
}

// Copies of boxes out of shared memory; what reaches out of the tensor is dropped. Groups belong to the thread that
// issued them: the same thread commits and waits.
DEVICE void write_box(const TensorMap* map, u32 from, i32 c0, i32 c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
        ::"l"((u64)map), "r"(from), "r"(c0), "r"(c1) : "memory");
}
DEVICE void write_box(const TensorMap* map, u32 from, i32 c0, i32 c1, i32 c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
        ::"l"((u64)map), "r"(from), "r"(c0), "r"(c1), "r"(c2) : "memory");
}
DEVICE void write_box(const TensorMap* map, u32 from, i32 c0, i32 c1, i32 c2, i32 c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
        ::"l"((u64)map), "r"(from), "r"(c0), "r"(c1), "r"(c2), "r"(c3) : "memory");
}
DEVICE void writes_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most N committed groups still read shared memory, or still write global memory.
template <int N> DEVICE void writes_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N> DEVICE void writes_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }

// Ordinary writes to shared memory before this become visible to copies and products after it (and a barrier).
DEVICE void fence_shared_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers among some of a block's warps; ids 1 to 15, best compile-time constants.
DEVICE void named_sync(i32 id, i32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void named_arrive(i32 id, i32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// Registers a thread of this warpgroup; multiples of 8.
template <int N> DEVICE void registers_raise() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void registers_lower() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// Four 8x8 matrices of 16-bit elements: lanes 0-7 address the rows of the first, 8-15 of the second, and so on.
DEVICE void store_matrices(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};"
        ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
