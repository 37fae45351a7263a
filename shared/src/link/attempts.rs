//! The first of several attempts to succeed: the staggered beginning of Happy Eyeballs version 2 (RFC 8305 §5).

use std::{panic::resume_unwind, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Begins `attempts` in their order, one more every `stagger` or as soon as one fails, and gives what the first to succeed gives; the others are
/// dropped. None if all fail. `on_failed` gets the errors as they come.
pub async fn first_of<T, E, A>(attempts: impl IntoIterator<Item = A>, stagger: Duration, mut on_failed: impl FnMut(E)) -> Option<T>
where
    T: Send + 'static,
    E: Send + 'static,
    A: Future<Output = Result<T, E>> + Send + 'static,
{
    let mut waiting = attempts.into_iter().peekable();
    let mut begun = JoinSet::new();
    loop {
        if let Some(attempt) = waiting.next() {
            begun.spawn(attempt);
        }
        let next_begins = Instant::now() + stagger;
        tokio::select! {
            ended = begun.join_next() => match ended? {
                Ok(Ok(first)) => return Some(first),
                Ok(Err(error)) => on_failed(error),
                Err(error) => if let Ok(panic) = error.try_into_panic() { resume_unwind(panic) },
            },
            () = sleep_until(next_begins), if waiting.peek().is_some() => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, pin::Pin};

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn those_that_never_answer_do_not_hold_up_the_next() {
        let attempts = [never(), never(), ends(Ok(3))];
        assert_eq!(within_deadline(first_of(attempts, Duration::from_millis(1), |_| ())).await, Some(3));
    }

    #[tokio::test]
    async fn one_that_fails_makes_way_at_once() {
        let mut failed = Vec::new();
        let first = within_deadline(first_of([ends(Err("no")), ends(Ok(2)), ends(Ok(3))], FOREVER, |error| failed.push(error))).await;
        assert_eq!((first, failed), (Some(2), vec!["no"]));
    }

    #[tokio::test]
    async fn one_that_is_slow_may_win_after_the_next_has_begun() {
        let (has_begun, other_begins) = oneshot::channel();
        let slow: Attempt = Box::pin(async { other_begins.await.map(|()| 1).map_err(|_| "the next did not begin") });
        let next: Attempt = Box::pin(async {
            has_begun.send(()).expect("it waits");
            pending().await
        });
        assert_eq!(within_deadline(first_of([slow, next], Duration::from_millis(1), |_| ())).await, Some(1));
    }

    #[tokio::test]
    async fn if_all_fail_all_errors_are_told() {
        let mut failed = Vec::new();
        let first = within_deadline(first_of([ends(Err("one")), ends(Err("two"))], FOREVER, |error| failed.push(error))).await;
        assert_eq!((first, failed), (None, vec!["one", "two"]));
        assert_eq!(within_deadline(first_of(Vec::<Attempt>::new(), FOREVER, |_| ())).await, None);
    }

    type Attempt = Pin<Box<dyn Future<Output = Result<u8, &'static str>> + Send>>;

    fn never() -> Attempt {
        Box::pin(pending())
    }

    fn ends(with: Result<u8, &'static str>) -> Attempt {
        Box::pin(async move { with })
    }

    async fn within_deadline<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(60), future).await.expect("ends")
    }

    /// More than any test takes.
    const FOREVER: Duration = Duration::from_secs(3600);
}
