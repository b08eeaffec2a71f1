//! openraft's runtime: tokio, with a coarse clock under the groups' ticks. Each group ticks on its own every few milliseconds; on a grid
//! they wake the thread together, and so does what this room does now and then: an idle node sleeps in between. Also, a wait of
//! microseconds is none, where tokio's takes a millisecond.

use openraft::async_runtime::AsyncRuntime;
use openraft::{Instant as _, OptionalSend, TokioInstant, TokioRuntime};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::runtime::{self, Handle, Runtime};

/// Ticks happen at multiples of this. tokio keeps what is due later in slots of so many milliseconds, and wakes at the beginning of a slot to
/// look into it: what is due just then costs no second wake-up (see `begin`).
const GRID: Duration = Duration::from_millis(64);
/// tokio's timers have this resolution; openraft waits 1 us for more completions of the disk to come.
const SHORTEST: Duration = Duration::from_millis(1);
/// A deadline so far back has passed whenever the timers were looked at last.
const LONG_PAST: Duration = Duration::from_secs(1);

thread_local! {
    /// Where the grid of a runtime begins: when it first asked. A simulated clock sees the same grid in each of its runs.
    static ORIGIN: Cell<Option<(runtime::Id, TokioInstant)>> = const { Cell::new(None) };
}

/// Builds a runtime and says when: its timers count from there, and so does the grid on the thread that calls `begin` with both.
pub(super) fn build(builder: &mut runtime::Builder) -> io::Result<(Runtime, TokioInstant)> {
    let origin = TokioInstant::now();
    Ok((builder.build()?, origin))
}

/// The calling thread will run `runtime`.
pub(super) fn begin(runtime: &Runtime, origin: TokioInstant) {
    ORIGIN.set(Some((runtime.handle().id(), origin)));
}

/// About so long, until a point of the grid: for what happens now and then and need not be exact.
pub(super) fn calm(pause: Duration) -> tokio::time::Sleep {
    let now = TokioInstant::now();
    TokioRuntime::sleep_until(calm_until(origin(now), now, pause))
}

/// The point of the grid that is nearest to the end of the pause.
fn calm_until(origin: TokioInstant, now: TokioInstant, pause: Duration) -> TokioInstant {
    on_grid(origin, now + pause - GRID / 2)
}

fn origin(now: TokioInstant) -> TokioInstant {
    let runtime = Handle::current().id();
    match ORIGIN.get() {
        Some((of, origin)) if of == runtime => origin,
        _ => {
            ORIGIN.set(Some((runtime, now)));
            now
        }
    }
}

/// The first point of the grid that is not before `deadline`.
fn on_grid(origin: TokioInstant, deadline: TokioInstant) -> TokioInstant {
    if deadline <= origin {
        return deadline;
    }
    let steps = (deadline - origin).as_nanos().div_ceil(GRID.as_nanos()) as u32;
    origin + GRID * steps
}

/// See the module.
#[derive(Debug)]
pub struct CoarseRuntime(TokioRuntime);

impl AsyncRuntime for CoarseRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = TokioInstant::now();
        let short = deadline < now + SHORTEST;
        TokioRuntime::sleep_until(if short { now - LONG_PAST } else { on_grid(origin(now), deadline) })
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        CoarseRuntime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_different_phases_come_together_and_never_early() {
        let origin = TokioInstant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        assert_eq!([0, 1, 18, 64, 65, 127].map(|ms| on_grid(origin, at(ms))), [0, 64, 64, 64, 128, 128].map(at));
        assert_eq!(on_grid(at(5), at(3)), at(3), "what is past is not put off");
    }

    #[test]
    fn a_calm_pause_that_begins_on_the_grid_ends_there_and_another_one_comes_back_to_it() {
        let origin = TokioInstant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        let pause = Duration::from_millis(200);
        assert_eq!([0, 3, 64, 95, 130].map(|now| calm_until(origin, at(now), pause)), [192, 192, 256, 320, 320].map(at));
    }

    #[tokio::test]
    async fn a_wait_of_microseconds_is_none() {
        let mut sleep = std::pin::pin!(CoarseRuntime::sleep_until(TokioInstant::now() + Duration::from_micros(1)));
        assert!(futures::poll!(sleep.as_mut()).is_ready());
        let mut tick = std::pin::pin!(CoarseRuntime::sleep_until(TokioInstant::now() + Duration::from_millis(2)));
        assert!(futures::poll!(tick.as_mut()).is_pending());
    }
}
