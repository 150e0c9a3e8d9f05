use std::sync::mpsc;

use crate::device::vhost_blk::pool::{Job, Pool};

type Closure = Box<dyn FnOnce() + Send>;

impl Job for Closure {
    fn run(self) {
        self();
    }
}

#[test]
fn a_job_that_waits_does_not_hold_up_another() {
    let pool = Pool::<Closure>::new(2);
    let (give, take) = mpsc::channel();
    let (done, results) = mpsc::channel();
    let also_done = done.clone();
    let waiting: Closure = Box::new(move || done.send(take.recv().unwrap()).unwrap());
    assert!(pool.submit(waiting).is_ok());
    assert!(
        pool.submit(Box::new(move || also_done.send(1).unwrap()))
            .is_ok()
    );
    assert_eq!(results.recv(), Ok(1));
    give.send(2).unwrap();
    assert_eq!(results.recv(), Ok(2));
    pool.end();
}

#[test]
fn what_was_submitted_is_done_before_the_end_and_nothing_after_it() {
    let pool = Pool::<Closure>::new(1);
    let (done, results) = mpsc::channel();
    for number in 0..100 {
        let done = done.clone();
        assert!(
            pool.submit(Box::new(move || done.send(number).unwrap()))
                .is_ok()
        );
    }
    pool.end();
    assert_eq!(results.try_iter().count(), 100);
    assert!(pool.submit(Box::new(|| {})).is_err());
}

#[test]
fn without_threads_the_job_comes_back() {
    let job: Closure = Box::new(|| {});
    assert!(Pool::new(0).submit(job).is_err());
}
