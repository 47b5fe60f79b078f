//! Owns the adapters that generation has on a GPU: each in a slot, the one that was used longest ago makes room.

use std::sync::{Arc, Mutex};

use half::bf16;

use super::gpu::{CudaError, Gpu};
use super::memory::{Format, Matrix, Memory, Pinned, Plan, upload};
use super::serve_ops::{AdapterLinear, AdapterPart, EXPAND_COLUMNS};
use crate::cpu::pool::Pool;
use crate::lora::{self, Adapter, Fused, Init, Layout};

/// What adapters may take together, unless one step needs more. Bytes.
const BUDGET: u64 = 4 << 30;

/// Ranks of a part begin at multiples of this, and end there: the rest are zeros.
const STEP: usize = 8;

pub(super) struct Adapters {
    gpu: Gpu,
    slots: Vec<Option<Loaded>>,
    /// For each slot what every fused linear of every layer has of it.
    table: Memory,
    n_linears: usize,
    clock: u64,
    /// Two halves, through which they come here by turns.
    staging: Pinned,
    /// Numbers of a half.
    half: usize,
}

/// Bytes of a half: a few linears of most adapters.
const HALF: usize = 16 << 20;

struct Loaded {
    number: u64,
    used: u64,
    most_ranks: usize,
    most_blocks: usize,
    /// Of each fused linear of each layer whether it is changed.
    changes: Arc<[bool]>,
    memory: Memory,
}

/// Where an adapter of this step lies.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// What the kernels count in: see [`Adapters::of_linear`].
    pub adapter: usize,
    pub most_ranks: usize,
    pub most_blocks: usize,
    /// Of each fused linear of each layer whether it is changed.
    pub changes: Arc<[bool]>,
}

impl Adapters {
    /// What [`Self::new`] takes of the GPU's memory. Bytes.
    pub fn bytes_of(n_layers: usize, n_slots: usize) -> usize {
        n_slots * n_layers * Fused::ALL.len() * size_of::<AdapterLinear>()
    }

    /// Errors: `OutOfMemory`.
    pub fn new(gpu: &Gpu, n_layers: usize, n_slots: usize) -> Result<Self, CudaError> {
        let n_linears = n_layers * Fused::ALL.len();
        let bytes = Self::bytes_of(n_layers, n_slots);
        let mut slots = Vec::new();
        slots.resize_with(n_slots, || None);
        Ok(Self {
            gpu: gpu.clone(),
            slots,
            table: Memory::new(gpu, bytes)?,
            n_linears,
            clock: 0,
            staging: Pinned::new(gpu, 2 * HALF)?,
            half: HALF / size_of::<bf16>(),
        })
    }

    /// The adapters of one fused linear, of all slots: slot `i` is number i · linears there.
    pub fn of_linear(&self, layer: usize, fused: Fused) -> u64 {
        let at = layer * Fused::ALL.len() + fused as usize;
        self.table.at() + (at * size_of::<AdapterLinear>()) as u64
    }

    /// Begins a step: what it asks for from now on stays until the next.
    pub fn begin_step(&mut self) {
        self.clock += 1;
    }

    /// Where an adapter is, brought here where it is not.
    /// Errors: `OutOfMemory`, `Driver`.
    pub fn slot(&mut self, pool: &Pool, adapter: &Adapter) -> Result<Slot, CudaError> {
        let number = adapter.number();
        let found = self.slots.iter().position(|slot| {
            let loaded = slot.as_ref();
            loaded.is_some_and(|loaded| loaded.number == number)
        });
        let at = match found {
            Some(at) => at,
            None => self.load(pool, adapter)?,
        };
        let loaded = self.slots[at].as_mut();
        let loaded = loaded.expect("found or loaded above — a bug here");
        loaded.used = self.clock;
        Ok(Slot {
            adapter: at * self.n_linears,
            most_ranks: loaded.most_ranks,
            most_blocks: loaded.most_blocks,
            changes: Arc::clone(&loaded.changes),
        })
    }

    fn load(&mut self, pool: &Pool, adapter: &Adapter) -> Result<usize, CudaError> {
        let number = adapter.number();
        let folded;
        let adapter = match adapter.config().init_lora_weights {
            Init::Pissa => {
                folded = adapter.to_plain();
                &folded
            }
            Init::Default | Init::Gaussian => adapter,
        };
        let layout = adapter.layout();
        let mut plan = Plan::measure();
        let _ = places(&mut plan, layout);
        self.make_room(plan.used() as u64);
        let at = self.free_slot();
        let memory = self.memory(plan.used())?;
        let places = places(&mut Plan::over(&memory), layout);
        self.bring(pool, adapter, &places, memory.at())?;
        let (mut table, mut most_ranks, mut most_blocks) = (Vec::new(), 0, 0);
        for (slots, place) in slots_of(layout).zip(&places) {
            let mut of_linear = AdapterLinear {
                a: place.a.at,
                a_pitch: place.a.pitch as i32,
                n_ranks: place.a.rows as i32,
                n_parts: slots.len() as i32,
                ..AdapterLinear::default()
            };
            let (mut first_rank, mut n_blocks) = (0, 0);
            for ((slot, b), part) in slots.iter().zip(&place.b).zip(&mut of_linear.parts) {
                let n_ranks = slot.r.next_multiple_of(STEP);
                *part = AdapterPart {
                    b: b.at,
                    b_pitch: b.pitch as i32,
                    first_column: slot.column as i32,
                    n_columns: slot.n_out as i32,
                    first_rank: first_rank as i32,
                    n_ranks: n_ranks as i32,
                    unused: 0,
                };
                first_rank += n_ranks;
                n_blocks += slot.n_out.div_ceil(EXPAND_COLUMNS);
            }
            most_ranks = most_ranks.max(place.a.rows);
            most_blocks = most_blocks.max(n_blocks);
            table.push(of_linear);
        }
        let bytes = size_of::<AdapterLinear>() * self.n_linears;
        upload(&self.gpu, self.table.at() + (at * bytes) as u64, &table)?;
        self.slots[at] = Some(Loaded {
            number,
            used: self.clock,
            most_ranks,
            most_blocks,
            changes: places.iter().map(|place| place.a.rows > 0).collect(),
            memory,
        });
        Ok(at)
    }

    /// Memory for one more; where the card has none left, those that were used longest ago go.
    fn memory(&mut self, bytes: usize) -> Result<Memory, CudaError> {
        loop {
            match Memory::new(&self.gpu, bytes) {
                Err(CudaError::OutOfMemory { needed, free }) => match self.oldest() {
                    Some(at) => self.slots[at] = None,
                    None => return Err(CudaError::OutOfMemory { needed, free }),
                },
                made => return made,
            }
        }
    }

    /// Copies all As and Bs to where `places` has them, from `at` on.
    fn bring(
        &mut self,
        pool: &Pool,
        adapter: &Adapter,
        places: &[Places],
        at: u64,
    ) -> Result<(), CudaError> {
        let largest = places.iter().map(Places::len).max().unwrap_or(0);
        if largest > self.half {
            self.half = largest.next_power_of_two();
            self.staging = Pinned::new(&self.gpu, 2 * self.half * size_of::<bf16>())?;
        }
        let linears: Vec<_> = slots_of(adapter.layout()).zip(places).collect();
        let numbers = self.staging.numbers::<bf16>(2 * self.half)?;
        let (mut packed, mut on_its_way) = numbers.split_at_mut(self.half);
        let (mut rest, mut at) = (&linears[..], at);
        while !rest.is_empty() {
            let mut len = 0;
            let n = rest.iter().take_while(|(_, place)| {
                len += place.len();
                len <= self.half
            });
            let (now, later) = rest.split_at(n.count());
            let len = now.iter().map(|(_, place)| place.len()).sum();
            pack(pool, adapter, now, &mut packed[..len]);
            // The other half is there.
            self.gpu.synchronize()?;
            upload(&self.gpu, at, &packed[..len])?;
            at += (len * size_of::<bf16>()) as u64;
            rest = later;
            (packed, on_its_way) = (on_its_way, packed);
        }
        self.gpu.synchronize()
    }

    /// Drops what was used longest ago until `needed` bytes fit the budget; what this step uses stays.
    fn make_room(&mut self, needed: u64) {
        loop {
            let held = self
                .slots
                .iter()
                .flatten()
                .map(|loaded| loaded.memory.len() as u64);
            if held.sum::<u64>() + needed <= BUDGET {
                return;
            }
            match self.oldest() {
                Some(at) => self.slots[at] = None,
                None => return,
            }
        }
    }

    fn free_slot(&mut self) -> usize {
        if let Some(at) = self.slots.iter().position(Option::is_none) {
            return at;
        }
        let at = self.oldest();
        at.expect("a step has at most as many adapters as there are slots — a bug above")
    }

    /// The slot that was used longest ago, before this step.
    fn oldest(&self) -> Option<usize> {
        let used = |at: usize| self.slots[at].as_ref().map(|loaded| loaded.used);
        let before =
            (0..self.slots.len()).filter(|&at| used(at).is_some_and(|used| used < self.clock));
        before.min_by_key(|&at| used(at))
    }
}

/// Where A and the Bs of a fused linear lie.
struct Places {
    /// (ranks, k)
    a: Matrix,
    /// (n, rank) of each part, behind it.
    b: Vec<Matrix>,
    /// Of all of them, with what lies between. Bytes.
    size: usize,
}

impl Places {
    /// Numbers.
    fn len(&self) -> usize {
        self.size / size_of::<bf16>()
    }
}

/// What changes each fused linear of each layer.
fn slots_of(layout: &Layout) -> impl Iterator<Item = &[lora::Slot]> {
    let linears = (0..layout.n_layers).flat_map(|layer| Fused::ALL.map(|fused| (layer, fused)));
    linears.map(|(layer, fused)| layout.fused(layer, fused))
}

/// As, scaled, and Bs of some linears, one behind the other.
fn pack(
    pool: &Pool,
    adapter: &Adapter,
    linears: &[(&[lora::Slot], &Places)],
    numbers: &mut [bf16],
) {
    /// A linear's part of the numbers, and what goes there.
    struct Task<'a> {
        to: &'a mut [bf16],
        slots: &'a [lora::Slot],
        place: &'a Places,
    }
    let (mut tasks, mut rest) = (Vec::new(), numbers);
    for &(slots, place) in linears {
        let (to, behind) = rest.split_at_mut(place.len());
        rest = behind;
        tasks.push(Mutex::new(Task { to, slots, place }));
    }
    pool.run(tasks.len(), |i| {
        let mut task = tasks[i].lock().expect("nobody panicked — a bug here");
        let Task { to, slots, place } = &mut *task;
        let a = place.a;
        to.fill(bf16::ZERO);
        let mut first_rank = 0;
        for (slot, b) in slots.iter().zip(&place.b) {
            let rows = adapter.values()[slot.a.clone()].chunks_exact(slot.n_in);
            for (row, from) in to[first_rank * a.pitch..].chunks_mut(a.pitch).zip(rows) {
                let pairs = row.iter_mut().zip(from);
                pairs.for_each(|(to, from)| *to = bf16::from_f32(from * slot.scale));
            }
            first_rank += slot.r.next_multiple_of(STEP);
            let rows = adapter.values()[slot.b.clone()].chunks_exact(slot.r);
            let b_at = (b.at - a.at) as usize / size_of::<bf16>();
            for (row, from) in to[b_at..].chunks_mut(b.pitch).zip(rows) {
                let pairs = row.iter_mut().zip(from);
                pairs.for_each(|(to, from)| *to = bf16::from_f32(*from));
            }
        }
    });
}

/// For each fused linear of each layer.
fn places(plan: &mut Plan, layout: &Layout) -> Vec<Places> {
    let mut all = Vec::new();
    for layer in 0..layout.n_layers {
        for fused in Fused::ALL {
            let slots = layout.fused(layer, fused);
            let ranks = slots.iter().map(|slot| slot.r.next_multiple_of(STEP)).sum();
            let n_in = slots.first().map_or(0, |slot| slot.n_in);
            let began = plan.used();
            let a = plan.matrix(Format::Bf16, ranks, n_in);
            let b = slots
                .iter()
                .map(|slot| plan.dense(Format::Bf16, slot.n_out, slot.r.next_multiple_of(STEP)))
                .collect();
            let size = plan.used() - began;
            all.push(Places { a, b, size });
        }
    }
    all
}
