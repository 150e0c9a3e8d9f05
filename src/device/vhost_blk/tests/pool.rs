use std::sync::mpsc;

use crate::device::vhost_blk::pool::{Job, Pool};

type Closure = Box<dyn FnOnce() + Send>;

impl Job for Closure {
    fn run(self) {
        self();
    }
}

#[test]
fn a_blocked_job_does_not_delay_others() {
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
fn submitted_jobs_are_completed_before_the_end() {
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
fn without_threads_the_job_is_returned() {
    let job: Closure = Box::new(|| {});
    assert!(Pool::new(0).submit(job).is_err());
}
