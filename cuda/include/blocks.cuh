// How a sequence is cut into blocks: runs that no block crosses, each cut by itself, the last block of a run ragged.
#pragma once
#include "types.cuh"

const int MAX_RUNS = 32;

// `runs` lengths, at least one, the last repeated to the end of the sequence.
struct Cut { i32 tokens, size, runs, lengths[MAX_RUNS]; };

struct Range { i32 begin, end; };

// The tokens of a block, which exists.
DEVICE Range tokens_of(const Cut& cut, i32 block) {
    i32 start = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run], blocks = (length + cut.size - 1) / cut.size;
        if (run + 1 >= cut.runs) {
            if (blocks == 0) return {start, start};
            const i32 repeat = block / blocks, from = start + repeat * length;
            const i32 begin = from + (block - repeat * blocks) * cut.size;
            return {begin, min(begin + cut.size, from + length)};
        }
        if (block < blocks) return {start + block * cut.size, min(start + (block + 1) * cut.size, start + length)};
        block -= blocks;
        start += length;
    }
}

struct Place { i32 block, run; };

// The block and the run that hold a token.
DEVICE Place place_of(const Cut& cut, i32 token) {
    i32 block = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run], blocks = (length + cut.size - 1) / cut.size;
        if (run + 1 >= cut.runs) {
            const i32 repeat = length == 0 ? 0 : token / length;
            return {block + repeat * blocks + (token - repeat * length) / cut.size, run + repeat};
        }
        if (token < length) return {block + token / cut.size, run};
        block += blocks;
        token -= length;
    }
}

// The tokens of the run that holds a token.
DEVICE Range run_at(const Cut& cut, i32 token) {
    i32 start = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run];
        if (run + 1 >= cut.runs) {
            const i32 begin = length == 0 ? start : start + (token - start) / length * length;
            return {begin, begin + length};
        }
        if (token < start + length) return {start, start + length};
        start += length;
    }
}
