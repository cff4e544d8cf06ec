//! A run in its folder: a checkpoint and a line of the log after each epoch, and a clean stop
//! between two steps when time is up.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::data::Data;
use crate::log::{LOG_NAME, Log};
use crate::run::{EpochReport, Run, checkpoint_path};

/// End of a call of [`train`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All stages are done.
    Finished,
    /// Time was up first; a later call goes on from the checkpoint.
    TimeIsUp,
}

/// Trains until all stages are done or time is up.
///
/// Time is up when what comes next would probably take until after `deadline`: another step, the
/// end of its epoch and the checkpoint, and before the first step of an epoch also the beginning of
/// the epoch. How long each of them takes is known once one was seen in this call.
///
/// `out` receives `checkpoint.pit` (the latest one, which may have been made within an epoch) and
/// `log.jsonl`. Lines of the log after the checkpoint's epoch, left by a run that was killed, are
/// cut off.
///
/// # Errors
/// Those of the run and of the file system.
pub fn train(
    run: &mut Run,
    data: &Data,
    out: &Path,
    deadline: Option<Instant>,
    bar: &ProgressBar,
) -> Result<Outcome> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut log = Log::open(&out.join(LOG_NAME), |line| seen(line, run))?;
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg} {eta}")
            .expect("a constant template"),
    );
    let mut clock = Clock::until(deadline);
    while !run.finished() {
        if !clock.before_epoch(run.meta.begun.is_none()) {
            bar.finish_and_clear();
            return Ok(Outcome::TimeIsUp);
        }
        bar.set_prefix(format!(
            "stage {}, epoch {}",
            run.meta.stage + 1,
            run.meta.stage_epoch + 1
        ));
        let report = run.epoch_while(data, bar, || clock.before_step())?;
        // The line first: one whose checkpoint was never written is cut off on the next start, one
        // that was never written would be missing for ever.
        if let Some(report) = &report {
            log.append(report)?;
        }
        run.checkpoint().save(&checkpoint_path(out))?;
        let Some(report) = report else {
            bar.finish_and_clear();
            return Ok(Outcome::TimeIsUp);
        };
        let line = line(&report);
        // A bar without a terminal prints nothing.
        if bar.is_hidden() {
            eprintln!("{line}");
        } else {
            bar.println(line);
        }
        clock.after_epoch();
    }
    bar.finish_and_clear();
    log.append(&json!({ "finished": run.meta.epoch, "wall_s": run.meta.wall_s }))?;
    Ok(Outcome::Finished)
}

/// Durations of the beginnings, steps and ends of epochs, against a deadline.
struct Clock {
    deadline: Option<Instant>,
    /// The time at which the epoch began, until its first step.
    epoch_began: Option<Instant>,
    /// The time at which the last step began, within an epoch.
    step_began: Option<Instant>,
    /// Duration of the longest beginning. Not of the last one: BCD tries its blocks in some of
    /// them only, and to be killed in one costs more than to stop early.
    beginning: Duration,
    /// Duration of the last step. Not of the longest one: on a GPU the first compiles its kernels.
    step: Duration,
    /// Duration of the last end of an epoch: its last step, the evaluation, the checkpoint.
    end: Duration,
}

impl Clock {
    fn until(deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            epoch_began: None,
            step_began: None,
            beginning: Duration::ZERO,
            step: Duration::ZERO,
            end: Duration::ZERO,
        }
    }

    /// Returns true if a step and the end of an epoch fit before the deadline, with the beginning
    /// of the epoch if one `begins`.
    fn before_epoch(&mut self, begins: bool) -> bool {
        let now = Instant::now();
        self.epoch_began = begins.then_some(now);
        let beginning = match begins {
            true => self.beginning,
            false => Duration::ZERO,
        };
        self.leaves_time(now, beginning)
    }

    fn leaves_time(&self, now: Instant, beginning: Duration) -> bool {
        self.deadline
            .is_none_or(|deadline| now + beginning + self.step + self.end <= deadline)
    }

    /// Returns true if a step and the end of its epoch fit before the deadline.
    fn before_step(&mut self) -> bool {
        let now = Instant::now();
        if let Some(began) = self.epoch_began.take() {
            self.beginning = self.beginning.max(now - began);
        }
        if let Some(began) = self.step_began.replace(now) {
            self.step = now - began;
        }
        self.leaves_time(now, Duration::ZERO)
    }

    fn after_epoch(&mut self) {
        if let Some(began) = self.step_began.take() {
            self.end = began.elapsed();
        }
    }
}

/// Returns true if a line of the log tells of an epoch that the run has seen.
fn seen(line: &serde_json::Value, run: &Run) -> bool {
    let (epoch, stage) = (line["epoch"].as_u64(), line["stage"].as_u64());
    let (own, own_stage) = (run.meta.epoch as u64, run.meta.stage as u64);
    epoch.zip(stage).is_some_and(|(epoch, stage)| {
        epoch <= own && (stage < own_stage || (stage == own_stage && run.meta.stage_epoch > 0))
    })
}

fn line(report: &EpochReport) -> String {
    let loss = report
        .loss
        .map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    let largest = report
        .sites
        .values()
        .fold(0.0f32, |m, site| m.max(site.largest));
    let held_out = report.holdout_accuracy.map_or_else(
        || "-".to_owned(),
        |accuracy| format!("{:.2} %", 100.0 * accuracy),
    );
    format!(
        "epoch {:3}  {} {}/{}  loss {loss}  held-out {held_out}  {:.0} images/s  {} ReLU, \
         {} polynomial, {} identity  largest input {largest:.1}",
        report.epoch,
        report.method,
        report.stage_epoch[0],
        report.stage_epoch[1],
        report.images_per_second,
        report.relus,
        report.polynomials,
        report.identities,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn an_epoch_begins_only_if_its_beginning_fits_too() {
        let short = Duration::from_millis(10);
        let mut clock = Clock::until(None);
        assert!(clock.before_epoch(true));
        sleep(short);
        // The first step is there after the beginning, the second one at once.
        assert!(clock.before_step() && clock.before_step());
        clock.after_epoch();
        assert!(clock.beginning >= short);
        // A quick beginning later on changes nothing.
        assert!(clock.before_epoch(true) && clock.before_step());
        assert!(clock.beginning >= short);
        // Far more than this test takes, so that nothing depends on how fast it is.
        clock.beginning = Duration::from_secs(7200);
        clock.step = Duration::ZERO;
        clock.end = Duration::ZERO;
        clock.deadline = Some(Instant::now() + Duration::from_secs(3600));
        assert!(!clock.before_epoch(true));
        assert!(clock.before_epoch(false), "only steps are left of it");
        assert!(clock.before_step());
        clock.end = Duration::from_secs(7200);
        assert!(!clock.before_epoch(false) && !clock.before_step());
    }
}
