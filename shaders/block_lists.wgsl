// What attention over listed blocks reads, in one buffer: of every query block the length of its list and the list; then of
// every key block its tokens, the first and behind the last; then of every centroid its key block and how many tokens it is
// the mean of. A thread writes a word or a pair. Whatever idx and cnt hold, lists are no longer than they may be and name
// blocks that exist.

struct Sizes {
    // Words of lists.
    words: u32,
    longest: u32,
    key_blocks: u32,
    centroids: u32,
    key_cut: Cut,
    centroid_cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> idx: array<u32>;
fn idx_at(i: u32) -> i32 { return bitcast<i32>(idx[i]); }
@group(0) @binding(1) var<storage, read_write> cnt: array<u32>;
fn cnt_at(i: u32) -> i32 { return bitcast<i32>(cnt[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let at = (id.y * count.x + id.x) * 256u + thread;
    if at < sizes.words {
        let row = at / (sizes.longest + 1u);
        let place = at % (sizes.longest + 1u);
        var word = 0;
        if place == 0u {
            word = clamp(cnt_at(row), 0, i32(sizes.longest));
        } else {
            word = clamp(idx_at(row * sizes.longest + place - 1u), 0, i32(sizes.key_blocks) - 1);
        }
        y[at] = bitcast<u32>(word);
        return;
    }
    let pair = at - sizes.words;
    if pair >= sizes.key_blocks + sizes.centroids { return; }
    var both = vec2(0u);
    if pair < sizes.key_blocks {
        both = tokens_of(sizes.key_cut, pair);
    } else {
        let range = tokens_of(sizes.centroid_cut, pair - sizes.key_blocks);
        both = vec2(place_of(sizes.key_cut, range.x).x, range.y - range.x);
    }
    y[sizes.words + 2u * pair] = both.x;
    y[sizes.words + 2u * pair + 1u] = both.y;
}
