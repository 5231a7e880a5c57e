//! The order of execution, chosen to keep memory low.
//!
//! Finding the best order is NP-hard. Some orders are made in about linear time and the one with the lowest peak is
//! taken: the order of the graph, the same with what is computed again as late as it is needed, depth first from the
//! results, the same with tasks first that free more than they fill, and greedy by the bytes that a task frees.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

/// One call of a kernel, as far as memory goes. Storages are indices.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// Distinct storages that it reads.
    pub reads: Vec<usize>,
    /// Storages that it fills; no two tasks fill the same.
    pub writes: Vec<usize>,
    /// Bytes that it needs besides.
    pub scratch: u64,
    /// Whether it computes something again, which had better wait.
    pub late: bool,
}

/// Memory that one task, or the caller, fills.
#[derive(Clone, Copy, Debug, Default)]
pub struct Storage {
    /// Its size.
    pub bytes: u64,
    /// Whether the caller reads it at the end.
    pub kept: bool,
}

/// When a storage is in use, in positions of the order; both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When it is filled.
    pub first: usize,
    /// When it is read last.
    pub last: usize,
}

/// The indices of `tasks` in an order that respects what they read; `tasks` themselves stand in such an order.
pub fn order(tasks: &[Task], storages: &[Storage]) -> Vec<usize> {
    let given: Vec<usize> = (0..tasks.len()).collect();
    let lazy = depth_first(tasks, storages, Vec::new());
    let candidates = [given, late(tasks), lazy, frees_first(tasks, storages), greedy(tasks, storages)];
    let best = candidates.into_iter().min_by_key(|order| peak(order, tasks, storages));
    best.expect("there are some")
}

/// When each storage is in use. What no task fills is there from the beginning, what is kept stays to the end.
pub fn lifetimes(order: &[usize], tasks: &[Task], storages: &[Storage]) -> Vec<Lifetime> {
    let end = order.len().saturating_sub(1);
    let mut lives: Vec<Lifetime> =
        storages.iter().map(|s| Lifetime { first: 0, last: if s.kept { end } else { 0 } }).collect();
    for (position, task) in order.iter().enumerate() {
        for storage in &tasks[*task].writes {
            lives[*storage].first = position;
            lives[*storage].last = lives[*storage].last.max(position);
        }
        for storage in &tasks[*task].reads {
            lives[*storage].last = lives[*storage].last.max(position);
        }
    }
    lives
}

/// The most bytes in use at a time: below this no arena can be.
pub fn peak(order: &[usize], tasks: &[Task], storages: &[Storage]) -> u64 {
    timeline(order, tasks, storages).into_iter().max().unwrap_or(0)
}

/// Bytes in use at each position of the order, scratch included.
pub fn timeline(order: &[usize], tasks: &[Task], storages: &[Storage]) -> Vec<u64> {
    let mut change = vec![0i128; order.len() + 1];
    for (life, storage) in lifetimes(order, tasks, storages).iter().zip(storages) {
        if life.first < order.len() {
            change[life.first] += i128::from(storage.bytes);
            change[life.last + 1] -= i128::from(storage.bytes);
        }
    }
    let mut live = 0i128;
    let at = |(task, change): (&usize, &i128)| {
        live += change;
        live as u64 + tasks[*task].scratch
    };
    order.iter().zip(&change).map(at).collect()
}

/// The order as it is given, each late task moved to right before the first that reads what it fills.
fn late(tasks: &[Task]) -> Vec<usize> {
    let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, task) in tasks.iter().enumerate() {
        task.reads.iter().for_each(|s| readers.entry(*s).or_default().push(i));
    }
    // Places are paths, compared from the front: task i stands at 2i + 1, what goes in front of it one below, by a number of
    // its own. From the end, so that all readers of a task have their places before it.
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut in_front = vec![0; tasks.len()];
    for i in (0..tasks.len()).rev() {
        let read = tasks[i].writes.iter().filter_map(|s| readers.get(s)).flatten().copied();
        let first = read.min_by(|a, b| places[*a].cmp(&places[*b])).filter(|_| tasks[i].late);
        places[i] = match first {
            None => vec![2 * i + 1],
            Some(first) => {
                let mut path = places[first].clone();
                path.last_mut().into_iter().for_each(|own| *own -= 1);
                path.push(2 * in_front[first] + 1);
                in_front[first] += 1;
                path
            }
        };
    }
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by(|a, b| places[*a].cmp(&places[*b]));
    order
}

/// The task that fills each storage.
fn producers(tasks: &[Task]) -> HashMap<usize, usize> {
    tasks.iter().enumerate().flat_map(|(i, task)| task.writes.iter().map(move |s| (*s, i))).collect()
}

/// Depth first, but before the results those tasks that free more than they fill, each with all that it alone needs.
fn frees_first(tasks: &[Task], storages: &[Storage]) -> Vec<usize> {
    let cones = Cones::new(tasks, storages);
    // What a cone frees: storages read last within it and filled outside of it.
    let mut freed = vec![0i128; tasks.len() + 1];
    let producers = producers(tasks);
    let mut last = vec![None; storages.len()];
    tasks.iter().enumerate().for_each(|(i, task)| task.reads.iter().for_each(|s| last[*s] = Some(i)));
    for (s, reader) in last.iter().enumerate().filter(|(s, _)| !storages[*s].kept) {
        let Some(reader) = reader else { continue };
        freed[*reader] += i128::from(storages[s].bytes);
        if let Some(producer) = producers.get(&s) {
            freed[cones.common(*reader, *producer)] -= i128::from(storages[s].bytes);
        }
    }
    // Tasks stand before the top of their cone.
    (0..tasks.len()).for_each(|i| freed[cones.top[i]] += freed[i]);
    let filled = |task: &Task| task.writes.iter().map(|s| i128::from(storages[*s].bytes)).sum::<i128>();
    let roots = (0..tasks.len()).filter(|i| freed[*i] > filled(&tasks[*i])).collect();
    depth_first(tasks, storages, roots)
}

/// For every task, the first one behind it that all of its uses lead to: it stands on top of the cone of what it alone
/// needs (immediate postdominators; Cooper, Harvey and Kennedy 2001). The end of the run is the task behind the last.
struct Cones {
    top: Vec<usize>,
    depth: Vec<usize>,
}

impl Cones {
    fn new(tasks: &[Task], storages: &[Storage]) -> Self {
        let end = tasks.len();
        let mut cones = Self { top: vec![end; end + 1], depth: vec![0; end + 1] };
        // By storage: what all of its readers lead to, so far.
        let mut uses: Vec<Option<usize>> = storages.iter().map(|s| s.kept.then_some(end)).collect();
        for (i, task) in tasks.iter().enumerate().rev() {
            let readers = task.writes.iter().filter_map(|s| uses[*s]);
            let top = readers.reduce(|a, b| cones.common(a, b)).unwrap_or(end);
            (cones.top[i], cones.depth[i]) = (top, cones.depth[top] + 1);
            for s in &task.reads {
                uses[*s] = Some(uses[*s].map_or(i, |other| cones.common(i, other)));
            }
        }
        cones
    }

    /// The first task that both lead to.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            match self.depth[a] >= self.depth[b] {
                true => a = self.top[a],
                false => b = self.top[b],
            }
        }
        a
    }
}

/// Every task right before it is needed, the largest operand first: `early` tasks first of all, then the results.
fn depth_first(tasks: &[Task], storages: &[Storage], early: Vec<usize>) -> Vec<usize> {
    let producers = producers(tasks);
    let mut order = Vec::with_capacity(tasks.len());
    let mut entered = vec![false; tasks.len()];
    let read: Vec<bool> = {
        let mut read = vec![false; storages.len()];
        tasks.iter().flat_map(|t| &t.reads).for_each(|s| read[*s] = true);
        read
    };
    let results = (0..tasks.len()).filter(|t| tasks[*t].writes.iter().all(|s| !read[*s] || storages[*s].kept));
    for root in early.into_iter().chain(results) {
        let mut stack = vec![(root, false)];
        while let Some((task, finished)) = stack.pop() {
            if finished {
                order.push(task);
            } else if !std::mem::replace(&mut entered[task], true) {
                stack.push((task, true));
                let mut before: Vec<(u64, usize)> = tasks[task]
                    .reads
                    .iter()
                    .filter_map(|s| producers.get(s).map(|t| (storages[*s].bytes, *t)))
                    .filter(|(_, t)| !entered[*t])
                    .collect();
                before.sort_unstable(); // the last one pushed is visited first: the largest
                stack.extend(before.into_iter().map(|(_, t)| (t, false)));
            }
        }
    }
    order
}

/// Whatever is ready and frees most, or needs least; ties in the order of the graph.
fn greedy(tasks: &[Task], storages: &[Storage]) -> Vec<usize> {
    let producers = producers(tasks);
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); storages.len()];
    let mut waiting = vec![0usize; tasks.len()];
    for (i, task) in tasks.iter().enumerate() {
        task.reads.iter().for_each(|s| readers[*s].push(i));
        waiting[i] = task.reads.iter().filter(|s| producers.contains_key(s)).count();
    }
    let mut left: Vec<usize> = readers.iter().map(Vec::len).collect();
    let growth = |task: usize, left: &[usize]| -> i128 {
        let task = &tasks[task];
        let freed = task.reads.iter().filter(|s| left[**s] == 1 && !storages[**s].kept);
        let sum = |it: &mut dyn Iterator<Item = &usize>| it.map(|s| i128::from(storages[*s].bytes)).sum::<i128>();
        sum(&mut task.writes.iter()) - sum(&mut freed.into_iter())
    };
    let mut done = vec![false; tasks.len()];
    let mut ready: BinaryHeap<Reverse<(i128, usize)>> =
        (0..tasks.len()).filter(|t| waiting[*t] == 0).map(|t| Reverse((growth(t, &left), t))).collect();
    let mut order = Vec::with_capacity(tasks.len());
    while let Some(Reverse((_, task))) = ready.pop() {
        // A task stands in the heap once more for every time that it grew cheaper.
        if std::mem::replace(&mut done[task], true) {
            continue;
        }
        order.push(task);
        for storage in &tasks[task].reads {
            left[*storage] -= 1;
            if left[*storage] == 1 {
                let last = readers[*storage].iter().find(|t| !done[**t]);
                ready.extend(last.filter(|t| waiting[**t] == 0).map(|t| Reverse((growth(*t, &left), *t))));
            }
        }
        for reader in tasks[task].writes.iter().flat_map(|s| &readers[*s]) {
            waiting[*reader] -= 1;
            if waiting[*reader] == 0 {
                ready.push(Reverse((growth(*reader, &left), *reader)));
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight branches that each blow up and shrink again: side by side they need eight large storages, one after the
    /// other only one.
    #[test]
    fn branches_run_one_after_the_other() {
        let (mut tasks, mut storages) = (Vec::new(), vec![Storage { bytes: 1, kept: false }]);
        for i in 0..8 {
            storages.push(Storage { bytes: 100, kept: false });
            tasks.push(Task { reads: vec![0], writes: vec![i + 1], scratch: 0, late: false });
        }
        for i in 0..8 {
            storages.push(Storage { bytes: 1, kept: true });
            tasks.push(Task { reads: vec![i + 1], writes: vec![i + 9], scratch: 0, late: false });
        }
        let given: Vec<usize> = (0..16).collect();
        assert_eq!(peak(&given, &tasks, &storages), 801);
        let best = order(&tasks, &storages);
        assert_eq!(peak(&best, &tasks, &storages), 108);
        let mut sorted = best.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, given);
    }

    /// An early value is blown up at the end, in two tiles, and a large early value is shrunk at once.
    #[test]
    fn what_frees_comes_first_and_what_fills_last() {
        let sizes = [1, 100, 4, 50, 50, 2, 2, 1];
        let storages = sizes.map(|bytes| Storage { bytes, kept: bytes == 1 });
        let task = |reads: &[usize], writes: usize| Task {
            reads: reads.to_vec(),
            writes: vec![writes],
            scratch: 0,
            late: false,
        };
        let tasks = [
            task(&[0], 1),
            task(&[1], 2),
            task(&[2], 3),
            task(&[2], 4),
            task(&[3], 5),
            task(&[4], 6),
            task(&[5, 6], 7),
        ];
        let order = frees_first(&tasks, &storages);
        assert_eq!(order, [0, 1, 3, 5, 2, 4, 6]);
        assert_eq!(peak(&order, &tasks, &storages), 105);
    }

    /// A chain forward and back, whose values are computed a second time from the first one: together at once, or each
    /// right before it is read.
    #[test]
    fn what_is_computed_again_waits_until_it_is_read() {
        let n = 6;
        // Storages: 0 the input, i = 1..=n forward, n + i a second time, 2n + i back.
        let storages: Vec<Storage> = (0..=3 * n)
            .map(|i| Storage { bytes: if i == 0 || i > 2 * n { 1 } else { 100 }, kept: i == 3 * n })
            .collect();
        let task = |reads: Vec<usize>, writes, late| Task { reads, writes: vec![writes], scratch: 0, late };
        let mut tasks: Vec<Task> = (1..=n).map(|i| task(vec![i - 1], i, false)).collect();
        tasks.extend((1..=n).map(|i| task(vec![0], n + i, true)));
        for i in 1..=n {
            let before = if i == 1 { n } else { 2 * n + i - 1 };
            tasks.push(task(vec![before, 2 * n + 1 - i], 2 * n + i, false));
        }
        let given: Vec<usize> = (0..3 * n).collect();
        let order = late(&tasks);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, given);
        let position = |task: usize| order.iter().position(|t| *t == task).unwrap();
        (0..n).for_each(|i| assert_eq!(position(2 * n - 1 - i) + 1, position(2 * n + i), "{order:?}"));
        assert_eq!((peak(&given, &tasks, &storages), peak(&order, &tasks, &storages)), (701, 202));
        // A chain of late ones stays a chain.
        let chain =
            [task(vec![0], 1, true), task(vec![1], 2, true), task(vec![], 3, false), task(vec![2, 3], 4, false)];
        assert_eq!(late(&chain), [2, 0, 1, 3]);
    }

    #[test]
    fn lifetimes_cover_inputs_results_and_what_is_kept() {
        let storages = [(4, false), (4, true), (4, false)].map(|(bytes, kept)| Storage { bytes, kept });
        let tasks = [
            Task { reads: vec![0], writes: vec![1], scratch: 8, late: false },
            Task { reads: vec![0], writes: vec![2], scratch: 0, late: false },
            Task { reads: vec![2], writes: vec![], scratch: 0, late: false },
        ];
        let lives = lifetimes(&[0, 1, 2], &tasks, &storages);
        let ends: Vec<_> = lives.iter().map(|l| (l.first, l.last)).collect();
        assert_eq!(ends, [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(timeline(&[0, 1, 2], &tasks, &storages), [16, 12, 8]);
    }
}
