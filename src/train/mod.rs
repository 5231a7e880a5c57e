//! Training: the same graphs, differentiated.
//!
//! ```text
//! model ─ bound ─ rewritten (student) ─┐
//!   └──── dense (teacher) ─────────────┼─▶ losses ─▶ grad ─▶ gradients entry, one a number of views ─┐
//!                          targets ────┘                                                              ├─▶ plan ─▶ session
//!                                                     AdamW ─────────▶ update entry ──────────────────┘
//! ```
//!
//! A gradients entry adds the gradient of one scene to states; the update entry moves the weights by what was gathered.
//! Everything on the device is a graph ([`losses`], [`adamw`]), so every backend that has the kernels trains.

pub mod adamw;
pub mod checkpoint;
pub mod config;
pub mod curves;
pub mod fit;
pub mod init;
pub mod join;
pub mod losses;
pub mod models;
pub mod run;
pub mod sample;
pub mod schedule;
pub mod source;
pub mod step;
pub mod trainer;
