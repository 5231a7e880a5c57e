// Shared memory: addresses, and where chunks of 16 bytes lie so that neither rows nor columns meet in a bank.
#pragma once
#include "types.cuh"

// The address of shared memory in its own window of 32 bits.
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Offset of a chunk in a panel with 128 or 64 bytes a row: the permutation of the copy engine and of wgmma.
DEVICE u32 swizzle_128(u32 row, u32 chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }
DEVICE u32 swizzle_64(u32 row, u32 chunk) { return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4); }
