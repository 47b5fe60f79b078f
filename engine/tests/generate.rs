//! Generation: a batch equals its single runs, serving equals training, and sequences come and go.

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::{LLAMA, Numbers, QWEN2, adapter, example, tensors_of};
use engine::Precision;
use engine::generate::{
    AdmitError, Batcher, FinishReason, GenerateRequest, Grammar, Limits, Sampling, SequenceId,
    StepOutput, Walk,
};
use engine::lora::{Adapter, LoraConfig};
use engine::pool::Pool;
use engine::train::{TrainConfig, Trainer};
use engine::weights::BaseModel;

const LIMITS: Limits = Limits {
    max_sequences: 16,
    max_cached_tokens: 4096,
};

const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::Bf16];

fn batcher_in(precision: Precision, base: Arc<BaseModel>, pool: Pool, limits: Limits) -> Batcher {
    let batcher = Batcher::in_precision(base, pool, limits, precision);
    assert_eq!(batcher.precision(), precision);
    batcher
}

fn request(len: usize, seed: u64, adapter: Option<Arc<Adapter>>) -> GenerateRequest {
    let mut numbers = Numbers(seed);
    GenerateRequest {
        prompt: (0..len).map(|_| numbers.below(101) as u32).collect(),
        adapter,
        scope: "".into(),
        sampling: Sampling {
            temperature: (seed % 3) as f32 * 0.5,
            top_p: 0.9,
            seed,
            ..Sampling::default()
        },
        max_new_tokens: 12,
        stop_token_ids: vec![],
        top_logprobs: Some(3),
        grammar: None,
    }
}

/// One step, in which no sequence fails.
fn step(batcher: &mut Batcher) -> Vec<StepOutput> {
    let outputs = batcher.step().unwrap().into_iter();
    outputs.map(Result::unwrap).collect()
}

fn drain(batcher: &mut Batcher) -> HashMap<SequenceId, Vec<StepOutput>> {
    let mut all: HashMap<SequenceId, Vec<StepOutput>> = HashMap::new();
    while !batcher.is_idle() {
        for output in step(batcher) {
            all.entry(output.id).or_default().push(output);
        }
    }
    all
}

type Told = (u32, f32, Vec<(u32, f32)>, Option<FinishReason>);

/// Tokens, log probabilities and alternatives, without the id.
fn told(outputs: &[StepOutput]) -> Vec<Told> {
    outputs
        .iter()
        .map(|o| (o.token, o.logprob, o.top.clone(), o.finished))
        .collect()
}

fn adapters(base: &BaseModel) -> [Option<Arc<Adapter>>; 3] {
    let config = LoraConfig::all_linear(4, 8.0);
    [
        None,
        Some(Arc::new(adapter(base, &config, 1))),
        Some(Arc::new(adapter(base, &config, 2))),
    ]
}

#[test]
fn every_sequence_of_a_mixed_batch_equals_its_single_run_bit_for_bit() {
    for precision in PRECISIONS {
        for tiny in [LLAMA, QWEN2] {
            let base = tiny.load(&Pool::new(2));
            let adapters = adapters(&base);
            let lengths = [5, 1, 90, 17, 33, 64, 2, 40];
            let requests: Vec<_> = lengths
                .iter()
                .enumerate()
                .map(|(i, &len)| request(len, i as u64, adapters[i % 3].clone()))
                .collect();
            let mut batcher = batcher_in(precision, base.clone(), Pool::new(2), LIMITS);
            let ids: Vec<_> = requests[..6]
                .iter()
                .map(|r| batcher.admit(r.clone()).unwrap())
                .collect();
            // Two arrive while the others are already answering.
            let mut outputs = step(&mut batcher);
            outputs.extend(step(&mut batcher));
            let late: Vec<_> = requests[6..]
                .iter()
                .map(|r| batcher.admit(r.clone()).unwrap())
                .collect();
            let mut together = drain(&mut batcher);
            for output in outputs.into_iter().rev() {
                together.get_mut(&output.id).unwrap().insert(0, output);
            }
            for (id, request) in ids.into_iter().chain(late).zip(requests) {
                let mut alone = batcher_in(precision, base.clone(), Pool::new(1), LIMITS);
                let own = alone.admit(request).unwrap();
                assert_eq!(told(&together[&id]), told(&drain(&mut alone)[&own]));
            }
        }
    }
}

#[test]
fn generation_beside_a_training_changes_no_bit_of_either() {
    for n_threads in [1, 2, 4] {
        let pool = Pool::new(n_threads);
        let base = QWEN2.load(&pool);
        let batch: Vec<_> = (0..4).map(|seed| example(101, 60, seed)).collect();
        let trainer = |pool: &Pool| {
            let adapter = adapter(&base, &LoraConfig::all_linear(4, 8.0), 3);
            Trainer::new(base.clone(), adapter, TrainConfig::default(), pool.clone())
        };
        let losses = |mut trainer: Trainer| {
            let losses = (0..10).map(|_| trainer.step(&batch).unwrap().loss);
            let losses: Vec<_> = losses.collect();
            (losses, tensors_of(&trainer.adapter().unwrap()))
        };
        let trained_alone = losses(trainer(&Pool::new(1)));
        let requests: Vec<_> = (0..10)
            .map(|i| request(if i % 3 == 0 { 30 } else { 5 }, i, None))
            .collect();

        let mut batcher = Batcher::new(base.clone(), pool.clone(), LIMITS);
        let (mut n_beside, mut n_held) = (0, 0);
        let mut told_beside: HashMap<SequenceId, Vec<StepOutput>> = HashMap::new();
        let mut ids = Vec::new();
        std::thread::scope(|scope| {
            let training = scope.spawn(|| losses(trainer(&pool)));
            let mut waiting = requests.iter().cloned();
            loop {
                if batcher.n_live() < 2
                    && let Some(request) = waiting.next()
                {
                    ids.push(batcher.admit(request).unwrap());
                }
                if batcher.is_idle() {
                    break;
                }
                let outputs = if batcher.can_step_beside() {
                    n_beside += 1;
                    batcher.step_beside()
                } else {
                    n_held += 1;
                    batcher.step()
                };
                for output in outputs.unwrap().into_iter().map(Result::unwrap) {
                    told_beside.entry(output.id).or_default().push(output);
                }
            }
            assert_eq!(training.join().unwrap(), trained_alone);
        });
        assert!(n_held > 1, "{n_held} steps");
        assert_eq!(n_beside > 20, n_threads > 1, "{n_beside} steps beside");
        for (id, request) in ids.iter().zip(requests) {
            let mut alone = Batcher::new(base.clone(), Pool::new(1), LIMITS);
            let own = alone.admit(request).unwrap();
            assert_eq!(told(&told_beside[id]), told(&drain(&mut alone)[&own]));
        }
    }
}

#[test]
fn adapters_change_the_answer() {
    let base = LLAMA.load(&Pool::new(2));
    let mut batcher = Batcher::new(base.clone(), Pool::new(2), LIMITS);
    let ids = adapters(&base).map(|a| batcher.admit(request(20, 0, a)).unwrap());
    let all = drain(&mut batcher);
    assert_ne!(told(&all[&ids[0]]), told(&all[&ids[1]]));
    assert_ne!(told(&all[&ids[1]]), told(&all[&ids[2]]));
}

#[test]
fn the_serving_path_scores_as_the_trainer_does() {
    let pool = Pool::new(2);
    let base = QWEN2.load(&pool);
    let adapter = adapter(&base, &LoraConfig::all_linear(4, 8.0), 3);
    let mut example = example(101, 200, 4);
    example.mask.fill(true);
    let mut trainer = Trainer::new(
        base.clone(),
        adapter.clone(),
        TrainConfig::default(),
        pool.clone(),
    );
    let trained = trainer.label_logprobs(&example).unwrap();
    let served = Batcher::new(base, pool, LIMITS)
        .score(&example.tokens, Some(&adapter))
        .unwrap();
    assert_eq!(trained, served);
    assert_eq!(served.len(), 199);
}

#[test]
fn the_serving_path_in_bf16_scores_nearly_as_the_trainer_does() {
    let pool = Pool::new(2);
    let base = QWEN2.load(&pool);
    let adapter = adapter(&base, &LoraConfig::all_linear(4, 8.0), 3);
    let tokens = example(101, 200, 4).tokens;
    let [exact, rounded] = PRECISIONS.map(|precision| {
        batcher_in(precision, base.clone(), pool.clone(), LIMITS)
            .score(&tokens, Some(&adapter))
            .unwrap()
    });
    let off: Vec<f32> = exact
        .iter()
        .zip(&rounded)
        .map(|(a, b)| (a - b).abs())
        .collect();
    // What the worker allows between a trained adapter and the served one (`gate.rs`).
    assert!(off.iter().sum::<f32>() / 199.0 < 0.02, "{off:?}");
    assert!(off.iter().all(|off| *off < 0.5), "{off:?}");
    assert_ne!(exact, rounded);
}

#[test]
fn what_is_generated_has_the_logprobs_that_scoring_gives() {
    for precision in PRECISIONS {
        let pool = Pool::new(2);
        let base = LLAMA.load(&pool);
        let adapter = Arc::new(adapter(&base, &LoraConfig::all_linear(4, 8.0), 3));
        let mut batcher = batcher_in(
            precision,
            base,
            pool,
            Limits {
                max_sequences: 2,
                max_cached_tokens: 2048,
            },
        );
        for temperature in [0.0, 1.0, 0.5] {
            // Longer than one block of rows and one block of depth: decoding meets every edge of the cache.
            let mut request = request(150, 0, Some(adapter.clone()));
            request.max_new_tokens = 60;
            request.sampling.temperature = temperature;
            let mut tokens = request.prompt.clone();
            let id = batcher.admit(request).unwrap();
            let outputs = &drain(&mut batcher)[&id];
            tokens.extend(outputs.iter().map(|o| o.token));
            let scores = batcher.score(&tokens, Some(&adapter)).unwrap();
            let generated: Vec<f32> = outputs.iter().map(|o| o.logprob).collect();
            assert_eq!(generated, scores[149..], "{temperature}");
            let is_first = |o: &StepOutput| o.top[0] == (o.token, o.logprob);
            assert_eq!(outputs.iter().all(is_first), temperature == 0.0);
        }
    }
}

#[test]
fn a_scored_prompt_says_what_was_generated_said_in_any_batch_and_after_any_beginning() {
    for precision in PRECISIONS {
        let pool = Pool::new(2);
        let base = LLAMA.load(&pool);
        let adapters = adapters(&base);
        let mut batcher = batcher_in(precision, base, pool, LIMITS);
        let mut cases = Vec::new();
        // Together they are read in several steps.
        for (i, len) in [300, 2, 65, 330, 128].into_iter().enumerate() {
            let plain = request(len, i as u64, adapters[i % 3].clone());
            let id = batcher.admit(plain.clone()).unwrap();
            let generated = told(&drain(&mut batcher)[&id]);
            let mut scored = plain.clone();
            scored.prompt.extend(generated.iter().map(|told| told.0));
            scored.max_new_tokens = 0;
            cases.push((plain, generated, scored));
        }
        // All of their pages are known by now.
        let admitted: Vec<_> = cases
            .iter()
            .map(|(plain, _, scored)| {
                let scored = batcher.admit(scored.clone()).unwrap();
                (scored, batcher.admit(plain.clone()).unwrap())
            })
            .collect();
        let together = drain(&mut batcher);
        for ((scored_id, plain_id), (plain, generated, scored)) in admitted.iter().zip(&cases) {
            assert_eq!(&told(&together[plain_id]), generated);
            let scores = &together[scored_id];
            let adapter = scored.adapter.as_deref();
            assert_eq!(
                scores.iter().map(|o| o.logprob).collect::<Vec<_>>(),
                batcher.score(&scored.prompt, adapter).unwrap()
            );
            let tokens: Vec<u32> = scores.iter().map(|o| o.token).collect();
            assert_eq!(tokens, scored.prompt[1..]);
            assert_eq!(told(&scores[plain.prompt.len() - 1..]), *generated);
            let ends = scores.iter().filter(|o| o.finished.is_some());
            assert_eq!((ends.count(), scores[0].n_reused), (1, 0));
        }
        assert_eq!(batcher.n_free_tokens(), LIMITS.max_cached_tokens);
    }
}

#[test]
fn a_scored_prompt_leaves_its_pages_to_others_and_may_fill_the_context() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let mut batcher = Batcher::new(base, pool, LIMITS);
    let scored = GenerateRequest {
        max_new_tokens: 0,
        ..request(512, 1, None)
    };
    let id = batcher.admit(scored.clone()).unwrap();
    assert_eq!(drain(&mut batcher)[&id].len(), 511);
    let mut next = scored.clone();
    next.prompt.truncate(200);
    next.max_new_tokens = 1;
    let id = batcher.admit(next).unwrap();
    assert_eq!(drain(&mut batcher)[&id][0].n_reused, 192);
    let mut longer = scored;
    longer.prompt.push(5);
    let refused = batcher.admit(longer).unwrap_err();
    assert!(matches!(refused, AdmitError::TooLong { .. }), "{refused}");
}

#[test]
fn a_prompt_longer_than_a_step_takes_in_changes_nothing() {
    for precision in PRECISIONS {
        let pool = Pool::new(2);
        let base = common::Tiny { layers: 1, ..LLAMA }.load(&pool);
        let mut long = request(500, 3, None);
        long.max_new_tokens = 4;
        let mut alone = batcher_in(precision, base.clone(), pool.clone(), LIMITS);
        let id = alone.admit(long.clone()).unwrap();
        let expected = told(&drain(&mut alone)[&id]);
        let mut batcher = batcher_in(precision, base, pool, LIMITS);
        batcher.admit(request(300, 1, None)).unwrap();
        let id = batcher.admit(long).unwrap();
        assert_eq!(told(&drain(&mut batcher)[&id]), expected);
    }
}

#[test]
fn a_beginning_that_was_run_before_is_used_again_in_its_scope_by_the_same_adapter_alone() {
    for precision in PRECISIONS {
        let pool = Pool::new(2);
        let base = LLAMA.load(&pool);
        let [_, first, second] = adapters(&base);
        let mut batcher = batcher_in(precision, base.clone(), pool.clone(), LIMITS);
        let common = request(140, 3, first.clone());
        let prompt = |n: usize, adapter: &Option<Arc<Adapter>>| GenerateRequest {
            prompt: [&common.prompt[..n], &[7, 8, 9]].concat(),
            adapter: adapter.clone(),
            ..common.clone()
        };
        let cases = [
            (prompt(140, &first), 0),
            (prompt(140, &first), 128),
            // The same tokens up to within the second page.
            (prompt(100, &first), 64),
            // All of the prompt is there, but its last token is run again for what comes next.
            (
                GenerateRequest {
                    prompt: common.prompt[..128].to_vec(),
                    ..common.clone()
                },
                64,
            ),
            (prompt(140, &second), 0),
            // What one project has asked is nothing that another is answered with.
            (
                GenerateRequest {
                    scope: "another".into(),
                    ..prompt(140, &first)
                },
                0,
            ),
            (prompt(140, &None), 0),
            (prompt(140, &None), 128),
        ];
        for (i, (request, n_reused)) in cases.into_iter().enumerate() {
            let id = batcher.admit(request.clone()).unwrap();
            let outputs = drain(&mut batcher).remove(&id).unwrap();
            assert_eq!(outputs[0].n_reused, n_reused, "case {i}");
            let mut alone = batcher_in(precision, base.clone(), pool.clone(), LIMITS);
            let own = alone.admit(request).unwrap();
            assert_eq!(told(&outputs), told(&drain(&mut alone)[&own]), "case {i}");
        }
        assert_eq!(batcher.n_free_tokens(), LIMITS.max_cached_tokens);
    }
}

#[test]
fn an_answer_is_a_beginning_too() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let mut batcher = Batcher::new(base, pool, LIMITS);
    let mut first = request(60, 1, None);
    first.max_new_tokens = 80;
    let id = batcher.admit(first.clone()).unwrap();
    let answer = drain(&mut batcher).remove(&id).unwrap();
    let mut next = first;
    next.prompt.extend(answer.iter().map(|o| o.token));
    next.prompt.extend([1, 2, 3]);
    let id = batcher.admit(next).unwrap();
    assert_eq!(drain(&mut batcher)[&id][0].n_reused, 128);
}

#[test]
fn where_pages_run_short_the_youngest_wait_and_every_answer_is_as_alone() {
    for precision in PRECISIONS {
        let pool = Pool::new(2);
        let base = LLAMA.load(&pool);
        let adapters = adapters(&base);
        let limits = Limits {
            max_sequences: 8,
            // Six pages: the answers of five sequences need fifteen.
            max_cached_tokens: 384,
        };
        let mut batcher = batcher_in(precision, base.clone(), pool.clone(), limits);
        let requests: Vec<_> = (0..5)
            .map(|i| GenerateRequest {
                max_new_tokens: 120,
                ..request(20 + i, i as u64, adapters[i % 3].clone())
            })
            .collect();
        let ids: Vec<_> = requests
            .iter()
            .map(|r| batcher.admit(r.clone()).unwrap())
            .collect();
        let together = drain(&mut batcher);
        for (id, request) in ids.iter().zip(&requests) {
            let mut alone = batcher_in(precision, base.clone(), pool.clone(), LIMITS);
            let own = alone.admit(request.clone()).unwrap();
            assert_eq!(told(&together[id]), told(&drain(&mut alone)[&own]));
        }
        assert_eq!(batcher.n_free_tokens(), limits.max_cached_tokens);
        // One that leaves in the middle gives back what it had.
        let id = batcher.admit(requests[0].clone()).unwrap();
        for _ in 0..70 {
            batcher.step().unwrap();
        }
        assert!(batcher.n_free_tokens() < limits.max_cached_tokens);
        batcher.cancel(id);
        assert_eq!(batcher.n_free_tokens(), limits.max_cached_tokens);
    }
}

#[test]
fn a_prompt_that_makes_way_while_it_is_scored_goes_on_where_it_was() {
    let pool = Pool::new(2);
    let base = LLAMA.load(&pool);
    let limits = Limits {
        max_sequences: 8,
        // The prompts have room, and the answers come to need one page more than there is.
        max_cached_tokens: 23 * 64,
    };
    let mut batcher = Batcher::new(base, pool, limits);
    for (seed, len) in [127, 127, 127, 127, 400].into_iter().enumerate() {
        let plain = GenerateRequest {
            max_new_tokens: 120,
            ..request(len, seed as u64, None)
        };
        batcher.admit(plain).unwrap();
    }
    let scored = GenerateRequest {
        max_new_tokens: 0,
        ..request(510, 9, None)
    };
    let id = batcher.admit(scored.clone()).unwrap();
    let (mut at, mut logprobs) = (Vec::new(), Vec::new());
    for n_steps in 0.. {
        if batcher.is_idle() {
            break;
        }
        for output in step(&mut batcher).iter().filter(|o| o.id == id) {
            at.push(n_steps);
            logprobs.push(output.logprob);
        }
    }
    assert!(at[0] < 2 && at[508] > 100, "{at:?}");
    assert_eq!(logprobs, batcher.score(&scored.prompt, None).unwrap());
}

#[test]
fn sequences_end_at_a_stop_token_at_their_length_and_at_the_context() {
    let base = LLAMA.load(&Pool::new(1));
    let mut batcher = Batcher::new(base, Pool::new(1), LIMITS);
    let greedy = |len| GenerateRequest {
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        ..request(len, 0, None)
    };
    let id = batcher.admit(greedy(10)).unwrap();
    let outputs = drain(&mut batcher).remove(&id).unwrap();
    assert_eq!(outputs.len(), 12);
    assert_eq!(outputs[11].finished, Some(FinishReason::Length));
    let stop = outputs[4].token;
    let first = outputs.iter().position(|o| o.token == stop).unwrap();
    let id = batcher
        .admit(GenerateRequest {
            stop_token_ids: vec![stop],
            ..greedy(10)
        })
        .unwrap();
    let stopped = drain(&mut batcher).remove(&id).unwrap();
    assert_eq!(stopped.len(), first + 1);
    assert_eq!(
        (stopped[first].token, stopped[first].finished),
        (stop, Some(FinishReason::Stop))
    );
    // The context of the model is 512.
    let id = batcher.admit(greedy(509)).unwrap();
    assert_eq!(drain(&mut batcher)[&id].len(), 3);
}

#[test]
fn what_cannot_be_run_is_not_admitted() {
    let base = LLAMA.load(&Pool::new(1));
    let other = QWEN2.load(&Pool::new(1));
    let foreign = Adapter::init(other.config(), &LoraConfig::all_linear(4, 8.0), 1).unwrap();
    let mut batcher = Batcher::new(
        base,
        Pool::new(1),
        Limits {
            max_sequences: 2,
            max_cached_tokens: 100,
        },
    );
    let good = request(10, 1, None);
    let cases = [
        (
            GenerateRequest {
                prompt: vec![],
                ..good.clone()
            },
            AdmitError::EmptyPrompt,
        ),
        (
            GenerateRequest {
                prompt: vec![7],
                max_new_tokens: 0,
                ..good.clone()
            },
            AdmitError::NothingToScore,
        ),
        (
            GenerateRequest {
                prompt: vec![101],
                ..good.clone()
            },
            AdmitError::UnknownToken {
                token: 101,
                vocab_size: 101,
            },
        ),
        (
            request(100, 1, None),
            AdmitError::TooLong {
                n_tokens: 100,
                limit: 100,
            },
        ),
        (
            GenerateRequest {
                adapter: Some(Arc::new(foreign)),
                ..good.clone()
            },
            AdmitError::WrongAdapter,
        ),
    ];
    for (request, expected) in cases {
        assert_eq!(batcher.admit(request).unwrap_err(), expected);
    }
    let first = batcher.admit(request(70, 1, None)).unwrap();
    // Both pages are its own.
    assert_eq!(
        batcher.admit(request(20, 1, None)).unwrap_err(),
        AdmitError::Full
    );
    batcher.cancel(first);
    batcher.admit(good.clone()).unwrap();
    batcher.admit(good.clone()).unwrap();
    assert_eq!(batcher.admit(good).unwrap_err(), AdmitError::Full);
    assert_eq!(batcher.n_live(), 2);
}

/// Answers whose token `i` is in set `i` of the list, and that end with the list.
struct Sets(Vec<Vec<u32>>);

struct InSets {
    sets: std::vec::IntoIter<Vec<u32>>,
    words: [u32; 4],
}

impl InSets {
    fn next(&mut self) -> bool {
        let set = self.sets.next();
        self.words = [0; 4];
        for token in set.iter().flatten() {
            self.words[*token as usize / 32] |= 1 << (token % 32);
        }
        set.is_none()
    }
}

impl Grammar for Sets {
    fn begin(&self) -> Box<dyn Walk> {
        let (sets, words) = (self.0.clone().into_iter(), [0; 4]);
        let mut walk = InSets { sets, words };
        walk.next();
        Box::new(walk)
    }
}

impl Walk for InSets {
    fn allowed(&mut self) -> Result<Option<&[u32]>, String> {
        Ok(Some(&self.words))
    }

    fn take(&mut self, _token: u32) -> bool {
        self.next()
    }
}

#[test]
fn a_grammar_holds_in_any_batch_through_preemption_and_ends_the_answer() {
    let base = LLAMA.load(&Pool::new(2));
    let sets = vec![vec![7, 70], vec![5], vec![100, 99, 98], vec![64, 65]];
    let requests: Vec<_> = (0..6)
        .map(|i| {
            let grammar: Option<Arc<dyn Grammar>> =
                (i % 2 == 0).then(|| Arc::new(Sets(sets.clone())) as _);
            let plain = request(60 + i, i as u64, None);
            GenerateRequest { grammar, ..plain }
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut batcher = Batcher::new(base.clone(), Pool::new(1), LIMITS);
            let id = batcher.admit(request.clone()).unwrap();
            told(&drain(&mut batcher)[&id])
        })
        .collect();
    for answer in alone.iter().step_by(2) {
        let tokens: Vec<u32> = answer.iter().map(|told| told.0).collect();
        assert!(
            tokens
                .iter()
                .zip(&sets)
                .all(|(token, set)| set.contains(token)),
            "{tokens:?}"
        );
        assert_eq!(
            (tokens.len(), answer[3].3),
            (4, Some(FinishReason::Complete))
        );
    }
    // Room for the prompts and little more: some make way for others, and go on where they were.
    let narrow = Limits {
        max_cached_tokens: 6 * 128 - 64,
        ..LIMITS
    };
    let mut batcher = Batcher::new(base, Pool::new(2), narrow);
    let ids: Vec<_> = requests
        .into_iter()
        .map(|request| batcher.admit(request).unwrap())
        .collect();
    let together = drain(&mut batcher);
    for (id, alone) in ids.iter().zip(alone) {
        assert_eq!(told(&together[id]), alone);
    }
}

#[test]
fn a_grammar_that_cannot_go_on_ends_its_own_sequence_alone() {
    let base = LLAMA.load(&Pool::new(2));
    let mut batcher = Batcher::new(base, Pool::new(2), LIMITS);
    let stuck = GenerateRequest {
        grammar: Some(Arc::new(Sets(vec![vec![3], vec![]]))),
        ..request(20, 1, None)
    };
    let other = batcher.admit(request(20, 2, None)).unwrap();
    let stuck = batcher.admit(stuck).unwrap();
    assert_eq!(step(&mut batcher).len(), 2);
    let outputs = batcher.step().unwrap();
    let [Ok(token), Err(failed)] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!((token.id, failed.id), (other, stuck));
    assert!(failed.to_string().contains("no token"), "{failed}");
    assert_eq!(batcher.n_live(), 1);
    assert_eq!(drain(&mut batcher)[&other].len(), 10);
}
