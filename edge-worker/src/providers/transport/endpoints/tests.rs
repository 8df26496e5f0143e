use jiff::Timestamp;

use super::{choice::RETRY_FAILED_AFTER, *};

const FAST: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(40);

/// Endpoints with one address each, in this order, and their routes.
fn endpoints<const N: usize>(ports: [u16; N]) -> (Arc<Endpoints>, [Arc<Route>; N]) {
    let hosts = ports.map(|port| Arc::new(Host::parse(&format!("host:{port}")).unwrap()));
    let clock = Clock::from_fn(|| Timestamp::UNIX_EPOCH);
    let all = Endpoints::new(Provider::Apns, None, hosts.to_vec(), Settings::default(), clock);
    for (index, port) in ports.into_iter().enumerate() {
        all.resolved(index, &[SocketAddr::from(([10, 0, 0, 1], port))]);
    }
    let mut routes = all.in_order(0).into_iter();
    (all.clone(), ports.map(|_| routes.next().unwrap()))
}

fn chosen(all: &Endpoints) -> (u16, Why) {
    let state = all.report(None).into_iter().find(|state| state.chosen).unwrap();
    (state.address.unwrap().port(), state.chosen_for.unwrap())
}

fn patience() -> Duration {
    Duration::from_millis(Settings::default().patience_ms)
}

/// Records enough answers that earlier ones no longer influence the means.
fn answers(all: &Endpoints, route: &Route, took: Duration, failing: bool) {
    for _ in 0..200 {
        if route.answered(Instant::now(), took, failing) {
            all.assess(route);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_fastest_is_chosen_once_all_are_measured() {
    let (all, [one, two, three]) = endpoints([1, 2, 3]);
    assert_eq!(chosen(&all), (1, Why::First));
    all.pinged(&one, SLOW);
    all.pinged(&two, FAST);
    all.review();
    assert_eq!(chosen(&all), (1, Why::First), "one is not measured");
    all.failed(&three, "connect");
    all.review();
    assert_eq!(chosen(&all), (2, Why::Fastest));
    assert!(all.should_keep(&two) && !all.should_keep(&one) && !all.should_keep(&three));
    assert_eq!(all.spare_route().unwrap().address.port(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_address_is_chosen_only_after_being_clearly_faster_for_the_patience() {
    let (all, [one, two]) = endpoints([1, 2]);
    all.pinged(&one, FAST);
    all.pinged(&two, FAST);
    all.review();
    assert_eq!(chosen(&all), (1, Why::Fastest));
    // Faster, but not clearly.
    for _ in 0..50 {
        all.pinged(&one, FAST + FAST / 4);
    }
    for _ in 0..2 {
        all.review();
        tokio::time::advance(patience()).await;
    }
    all.review();
    assert_eq!(chosen(&all), (1, Why::Fastest));
    // Clearly faster, but interrupted.
    let mut changes = all.changes();
    for took in [SLOW, FAST, SLOW] {
        for _ in 0..50 {
            all.pinged(&one, took);
        }
        all.review();
        tokio::time::advance(patience() / 2).await;
        all.review();
        assert_eq!(chosen(&all), (1, Why::Fastest));
    }
    tokio::time::advance(patience() / 2).await;
    all.review();
    assert_eq!(chosen(&all), (2, Why::Faster));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    all.review();
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_failed_address_is_abandoned_at_once_and_chosen_again_later() {
    let (all, [one, two]) = endpoints([1, 2]);
    all.pinged(&one, FAST);
    all.pinged(&two, SLOW);
    all.review();
    all.failed(&one, "connect");
    assert_eq!(chosen(&all), (2, Why::Failover));
    assert_eq!(all.in_order(0)[0].address.port(), 2);
    two.connections.store(1, Ordering::Relaxed);
    assert_eq!((all.spare_route().is_none(), all.next_probe().is_none()), (true, true));
    all.pinged(&one, FAST);
    assert!(
        all.spare_route().is_none(),
        "a failed address is not tried before its wait has ended"
    );
    tokio::time::advance(RETRY_FAILED_AFTER.first * 2).await;
    assert_eq!(all.next_probe().unwrap().address.port(), 1);
    all.pinged(&one, FAST);
    all.review();
    assert_eq!(
        chosen(&all),
        (2, Why::Failover),
        "healthy, but not yet faster for long enough"
    );
    assert_eq!(all.spare_route().unwrap().address.port(), 1);
    tokio::time::advance(patience()).await;
    all.review();
    assert_eq!(chosen(&all), (1, Why::Faster));
}

#[tokio::test(start_paused = true)]
async fn errors_make_an_address_unhealthy_and_answers_heal_it() {
    let (all, [one, two]) = endpoints([1, 2]);
    all.pinged(&one, FAST);
    all.pinged(&two, FAST);
    all.review();
    for _ in 0..5 {
        assert!(!one.finished(true));
    }
    assert!(!one.finished(false), "five errors in a row are tolerated");
    answers(&all, &one, FAST, true);
    assert_eq!(chosen(&all), (2, Why::Failover));
    answers(&all, &two, FAST, true);
    assert_eq!(chosen(&all), (2, Why::Failover), "no address is healthy");
    assert!(all.should_keep(&two), "no better address exists");
    answers(&all, &one, FAST, false);
    assert_eq!(chosen(&all), (1, Why::Failover));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_slowed_down_is_replaced_by_one_expected_to_be_as_fast_as_before() {
    let (all, [one, two]) = endpoints([1, 2]);
    all.pinged(&one, FAST);
    all.pinged(&two, FAST);
    answers(&all, &one, FAST + SLOW, false);
    all.review();
    assert_eq!(chosen(&all), (1, Why::Fastest));
    answers(&all, &one, 5 * SLOW, false);
    all.review();
    tokio::time::advance(patience()).await;
    all.review();
    assert_eq!(chosen(&all), (2, Why::Faster));
    answers(&all, &two, 5 * SLOW, false);
    all.review();
    tokio::time::advance(patience()).await;
    all.review();
    assert_eq!(chosen(&all), (2, Why::Faster), "both are slow");
}

#[tokio::test(start_paused = true)]
async fn connections_spread_over_the_addresses_of_one_endpoint() {
    let (all, [one, _]) = endpoints([1, 2]);
    let addresses: Vec<_> = (2..9).map(|last| SocketAddr::from(([10, 0, 0, last], 1))).collect();
    all.resolved(0, &addresses);
    let firsts = |all: &Endpoints| -> std::collections::BTreeSet<SocketAddr> {
        (0..8).map(|nth| all.in_order(nth)[0].address).collect()
    };
    assert_eq!(firsts(&all).len(), MAX_ADDRESSES_PER_HOST);
    for (nth, route) in all.in_order(0).into_iter().enumerate() {
        all.pinged(&route, if nth < 2 { FAST } else { SLOW });
    }
    all.review();
    assert_eq!(firsts(&all).len(), 2);
    tokio::time::advance(KEEP_ADDRESS_FOR).await;
    all.resolved(0, &[]);
    assert_eq!(firsts(&all).len(), 2, "known addresses survive a failure of DNS");
    assert_eq!(all.unresolved(RESOLVE_EVERY).len(), 2);
    all.resolved(0, &addresses[..1]);
    assert_eq!(all.unresolved(RESOLVE_EVERY).len(), 1);
    assert_eq!(
        all.in_order(0).len(),
        3,
        "the resolved one, the chosen one, and the other endpoint"
    );
    assert!(firsts(&all).contains(&one.address));
}

#[tokio::test(start_paused = true)]
async fn measuring_opens_few_connections() {
    let (all, routes) = endpoints([1, 2, 3]);
    let first = [(); 3].map(|()| all.next_probe().unwrap().address.port());
    assert_eq!(first, [1, 2, 3]);
    assert!(all.next_probe().is_none());
    routes[0].connections.store(1, Ordering::Relaxed);
    for port in [2, 3, 2] {
        tokio::time::advance(all.settings.probe()).await;
        assert_eq!(all.next_probe().unwrap().address.port(), port);
        assert!(all.next_probe().is_none());
    }
    assert!(!all.is_in_use());
    all.mark_used();
    assert!(all.is_in_use());
    tokio::time::advance(3 * all.settings.probe()).await;
    assert!(!all.is_in_use());
}
