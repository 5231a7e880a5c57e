// What the kernels of the reverse pass of attention are told.
#pragma once
#include "blocks.cuh"
#include "rows.cuh"

// Lists a head, key blocks, places of a list, centroids; owned tiles of a query block or of all keys; queries, keys that
// are owned or walked over, widths of queries and of values.
struct Sizes { u32 query_blocks, key_blocks, longest, centroids, tiles, n, m, d, e; float scale; };
