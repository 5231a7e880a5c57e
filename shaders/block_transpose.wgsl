// For every key block the query blocks whose lists hold it: of every head, where the lists of key blocks begin and end, then
// all of them. A workgroup takes a head, list by list: a list holds a key block once, so that no two threads meet.

struct Sizes {
    heads: u32,
    query_blocks: u32,
    key_blocks: u32,
    longest: u32,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> idx: array<u32>;
fn idx_at(i: u32) -> i32 { return bitcast<i32>(idx[i]); }
@group(0) @binding(1) var<storage, read_write> cnt: array<u32>;
fn cnt_at(i: u32) -> i32 { return bitcast<i32>(cnt[i]); }
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

var<workgroup> sums: array<u32, 256>;

// The key block in a place of a list; none behind its end.
fn entry(list: u32, place: u32) -> u32 {
    if place >= u32(clamp(cnt_at(list), 0, i32(sizes.longest))) { return sizes.key_blocks; }
    return u32(idx_at(list * sizes.longest + place));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let head = id.y * count.x + id.x;
    if head >= sizes.heads { return; }
    let words = sizes.query_blocks * sizes.longest;
    let starts = head * (sizes.key_blocks + 1u + words);
    let rows = starts + sizes.key_blocks + 1u;
    // Lengths, one place further than starts.
    for (var j = thread; j <= sizes.key_blocks; j += 256u) { y[starts + j] = 0u; }
    for (var i = thread; i < words; i += 256u) { y[rows + i] = 0xffffffffu; }
    for (var list = 0u; list < sizes.query_blocks; list++) {
        storageBarrier();
        for (var place = thread; place < sizes.longest; place += 256u) {
            let j = entry(head * sizes.query_blocks + list, place);
            if j < sizes.key_blocks { y[starts + j + 1u] += 1u; }
        }
    }
    storageBarrier();
    // A thread sums a stretch of them; then it knows what stands before.
    let stretch = (sizes.key_blocks + 255u) / 256u;
    let first = min(thread * stretch, sizes.key_blocks);
    let last = min(first + stretch, sizes.key_blocks);
    var sum = 0u;
    for (var j = first; j < last; j++) { sum += y[starts + j + 1u]; }
    sums[thread] = sum;
    workgroupBarrier();
    var before = 0u;
    for (var i = 0u; i < thread; i++) { before += sums[i]; }
    // Where a list goes on, while it is written: one place further than where it begins.
    for (var j = first; j < last; j++) {
        let length = y[starts + j + 1u];
        y[starts + j + 1u] = before;
        before += length;
    }
    for (var list = 0u; list < sizes.query_blocks; list++) {
        storageBarrier();
        for (var place = thread; place < sizes.longest; place += 256u) {
            let j = entry(head * sizes.query_blocks + list, place);
            if j < sizes.key_blocks {
                let at = y[starts + j + 1u];
                y[rows + min(at, words - 1u)] = list;
                y[starts + j + 1u] = at + 1u;
            }
        }
    }
}
