//! Whatever workers do, in whatever order, and whichever regions are cut off: together they never exceed the quota.

use proptest::prelude::*;

use super::*;

const QUOTA: u64 = 6000;
const REGIONS: usize = 2;
const WORKERS: usize = 2;
const SHARE: u64 = QUOTA / REGIONS as u64;

#[derive(Debug, Clone)]
enum Step {
    /// A worker renews its lease in its region, and wants this much.
    Home(usize, u64),
    /// A worker takes a lease from the hub's pool, and wants this much.
    Hub(usize, u64),
    /// A worker of this region lends the spare part.
    Lend(usize),
    /// A worker has set aside the spare part of its region, and died before it recorded the loan at the hub.
    HalfLend(usize),
    /// A region loses the hub, or reaches it again.
    Cut(usize),
    /// A worker restarts: the new process has another name and holds nothing.
    Restart(usize),
    /// Time passes, in milliseconds.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let worker = 0..REGIONS * WORKERS;
    // The quota can be exceeded only when nearly every worker wants all of it.
    let wants = prop_oneof![1 => Just(0), 8 => Just(QUOTA), 1 => 0..QUOTA];
    prop_oneof![
        3 => (worker.clone(), wants.clone()).prop_map(|(worker, wants)| Step::Home(worker, wants)),
        3 => (worker.clone(), wants).prop_map(|(worker, wants)| Step::Hub(worker, wants)),
        3 => (0..REGIONS).prop_map(Step::Lend),
        1 => (0..REGIONS).prop_map(Step::HalfLend),
        1 => (0..REGIONS).prop_map(Step::Cut),
        1 => worker.prop_map(Step::Restart),
        4 => (0u64..12_000).prop_map(Step::Wait),
    ]
}

#[derive(Debug, Default)]
struct Mesh {
    now: u64,
    homes: [Pool; REGIONS],
    hub: Pool,
    cut: [bool; REGIONS],
    /// What each worker may send, and until when, from its region and from the hub.
    held: [[(u64, u64); 2]; REGIONS * WORKERS],
    lives: [usize; REGIONS * WORKERS],
}

impl Mesh {
    /// A server's time as a worker knows it: the reported time is already past when it arrives, and servers' clocks
    /// differ.
    fn time(&self, skew_ms: i64, ahead: Duration) -> Timestamp {
        let now = i64::try_from(self.now).unwrap() + skew_ms;
        after(Timestamp::from_millisecond(1_000_000_000_000 + now).unwrap(), ahead)
    }

    fn act(&mut self, step: &Step, late_ms: i64, hubs_skew_ms: i64) {
        let ends = self.now + u64::try_from(LEASE_DURATION.as_millis()).unwrap();
        match *step {
            Step::Wait(time) => self.now += time,
            Step::Cut(region) => self.cut[region] ^= true,
            Step::Restart(worker) => {
                self.held[worker] = [(0, 0); 2];
                self.lives[worker] += 1;
            }
            Step::Home(worker, wants) => {
                let now = self.time(late_ms, Duration::ZERO);
                let lease = self.homes[worker / WORKERS].take(SHARE, &self.name(worker), wants, now);
                self.held[worker][0] = (lease.rate, ends);
            }
            Step::Hub(worker, wants) if !self.cut[worker / WORKERS] => {
                let now = self.time(hubs_skew_ms + late_ms, Duration::ZERO);
                let lease = self.hub.take(0, &self.name(worker), wants, now);
                self.held[worker][1] = (lease.rate, ends);
            }
            Step::Lend(region) | Step::HalfLend(region) if !self.cut[region] => {
                let name = format!("r{region}").parse().unwrap();
                let now = self.time(late_ms, Duration::ZERO);
                let hubs_now = self.time(hubs_skew_ms + late_ms, Duration::ZERO);
                let wanted = self.hub.wanted_of(&name, hubs_now, after(hubs_now, LEASE_DURATION));
                let amount = wanted.min(self.homes[region].spare(SHARE, now));
                let until = self.time(late_ms, LOAN_DURATION + CLOCK_MARGIN);
                let rate = self.homes[region].set_aside(SHARE, amount, now, until);
                if matches!(step, Step::Lend(_)) {
                    let until = self.time(hubs_skew_ms + late_ms, LOAN_DURATION);
                    self.hub.lend(&name, rate, hubs_now, until);
                }
            }
            Step::Hub(..) | Step::Lend(_) | Step::HalfLend(_) => {}
        }
    }

    fn name(&self, worker: usize) -> String {
        format!("{worker}/{}", self.lives[worker])
    }

    fn sending(&self) -> u64 {
        let held = self.held.iter().flatten().filter(|(_, ends)| self.now < *ends);
        held.map(|(rate, _)| rate).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn all_workers_together_never_exceed_the_quota(
        steps in prop::collection::vec((step(), 0i64..1000), 1..120),
        hubs_skew_ms in -1_000_000i64..1_000_000,
    ) {
        let mut mesh = Mesh::default();
        for (step, late_ms) in steps {
            mesh.act(&step, late_ms, hubs_skew_ms);
            prop_assert!(mesh.sending() <= QUOTA, "{} after {step:?}: {mesh:?}", mesh.sending());
        }
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn small_wishes_are_met_and_the_others_share_the_rest() {
    let mut pool = Pool::default();
    for _ in 0..3 {
        for (holder, wants) in [("a", 100), ("b", 9000), ("c", 9000)] {
            pool.take(1000, holder, wants, at(0));
        }
    }
    let rate = |holder| pool.lease(holder, at(0)).unwrap().rate;
    assert_eq!([rate("a"), rate("b"), rate("c")], [100, 450, 450]);
}

#[test]
fn a_loan_can_be_taken_until_it_ends_and_then_returns() {
    let (eu, us): (Region, Region) = ("eu".parse().unwrap(), "us".parse().unwrap());
    let (mut home, mut hub) = (Pool::default(), Pool::default());
    assert_eq!(hub.take(0, "us/1", 700, at(0)).rate, 0, "no region lends yet");
    assert_eq!(hub.wanted_of(&eu, at(0), at(10)), 700);
    assert_eq!(home.take(1000, "eu/1", 400, at(0)).rate, 400);
    let rate = home.set_aside(1000, home.spare(1000, at(0)).min(700), at(0), at(32));
    hub.lend(&eu, rate, at(0), at(30));
    assert_eq!(
        (rate, hub.lent_by(&eu, at(10)), hub.lent_by(&us, at(10))),
        (600, 600, 0)
    );
    assert_eq!(hub.take(0, "us/1", 700, at(1)).rate, 600);
    assert_eq!(
        hub.wanted_of(&eu, at(1), at(10)),
        700,
        "the loan is prolonged while a worker wants it"
    );
    assert_eq!(home.take(1000, "eu/1", 1000, at(5)).rate, 400, "the rest is lent");
    assert_eq!(hub.take(0, "us/1", 700, at(19)).rate, 600);
    assert_eq!(
        hub.take(0, "us/1", 700, at(21)).rate,
        0,
        "the loan ends before the lease would"
    );
    assert_eq!(home.take(1000, "eu/1", 1000, at(31)).rate, 400);
    assert_eq!(home.take(1000, "eu/1", 1000, at(34)).rate, 1000);
}
