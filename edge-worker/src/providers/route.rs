//! Which providers an app wants asked for a channel, and in which order.
//!
//! Only the order depends on what a worker has learned. Whether a message is sent again after an attempt in doubt is decided
//! before (`pipeline/interrupted.rs`, the app's `ambiguity`), and none of the providers whose reports are followed recognizes a
//! repeated message, so another order doubles nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use shared::{
    address::Target,
    app::Route,
    channel::Channel,
    id::{AppId, DeliveryId},
    provider::Provider,
};

/// While a provider is slow, one delivery in this many still asks the app's providers in the order of its routes. From these the
/// worker learns whether reports come in time again.
const TRIES_SLOW_ONE_IN: u64 = 16;

/// The routes of all apps that have any.
#[derive(Debug, Default)]
pub(super) struct Routes(ArcSwap<HashMap<AppId, BTreeMap<Channel, Vec<Route>>>>);

impl Routes {
    /// Replaces the routes of `app`.
    pub(super) fn set(&self, app: &AppId, routes: &BTreeMap<Channel, Vec<Route>>) {
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            if routes.is_empty() {
                all.remove(app);
            } else {
                all.insert(app.clone(), routes.clone());
            }
            Arc::new(all)
        });
    }

    /// The providers to ask for an attempt at a delivery, in order: those that can carry to the target and that the app
    /// `has`. The first is drawn by weight, the same for all attempts at the delivery; each further attempt begins with the
    /// next. Those whose reports are slow come last, but for a few deliveries.
    pub(super) fn order(
        &self,
        app: &AppId,
        target: &Target,
        delivery: DeliveryId,
        number: u32,
        has: impl Fn(Provider) -> bool,
        is_slow: impl Fn(Provider) -> bool,
    ) -> Vec<Provider> {
        let Some(usable) = self.usable(app, target, &has) else {
            let first = target.carriers().iter().find(|provider| has(**provider));
            return first.copied().into_iter().collect();
        };
        let (weighted, reserve): (Vec<_>, Vec<_>) = usable.into_iter().partition(|route| route.weight > 0);
        let mut order: Vec<_> = weighted.iter().map(|route| route.provider).collect();
        if let Some(first) = draw(&weighted, delivery) {
            // The drawn one first, the others in the app's order.
            order[..=first].rotate_right(1);
        }
        order.extend(reserve.iter().map(|route| route.provider));
        if order.len() > 1 && delivery.draw_again(TRIES_SLOW_ONE_IN) > 0 {
            order.sort_by_cached_key(|provider| is_slow(*provider));
        }
        if !order.is_empty() {
            let skipped = (number.max(1) - 1) as usize % order.len();
            order.rotate_left(skipped);
        }
        order
    }

    /// Whether another provider could be asked instead of one of them.
    pub(super) fn has_choice(&self, app: &AppId, target: &Target, has: impl Fn(Provider) -> bool) -> bool {
        self.usable(app, target, has).is_some_and(|usable| usable.len() > 1)
    }

    /// The routes of the app to providers that it `has` and that can carry to the target; `None` if it has none for the channel.
    fn usable(&self, app: &AppId, target: &Target, has: impl Fn(Provider) -> bool) -> Option<Vec<Route>> {
        let all = self.0.load();
        let routes = all.get(app)?.get(&target.channel())?;
        let can_carry = target.carriers();
        let usable = |route: &&Route| can_carry.contains(&route.provider) && has(route.provider);
        Some(routes.iter().filter(usable).copied().collect())
    }
}

/// The index of one of `routes`, each as likely as its weight. Ids of deliveries are digests, so their bits are even.
fn draw(routes: &[Route], delivery: DeliveryId) -> Option<usize> {
    let total: u64 = routes.iter().map(|route| u64::from(route.weight)).sum();
    let mut drawn = delivery.draw(total);
    routes.iter().position(|route| {
        let weight = u64::from(route.weight);
        let is_it = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        is_it
    })
}

#[cfg(test)]
mod tests {
    use shared::{
        channel::Channel,
        id::{AddressId, JobId},
        testing,
    };
    use uuid::Uuid;

    use super::*;

    fn route(provider: Provider, weight: u8) -> Route {
        Route { provider, weight }
    }

    fn delivery(number: u128) -> DeliveryId {
        let job: JobId = Uuid::from_u128(number).to_string().parse().unwrap();
        let address: AddressId = Uuid::nil().to_string().parse().unwrap();
        DeliveryId::of(job, address)
    }

    fn firsts(apns: u8, log: u8, number: u32) -> [usize; 2] {
        let app: AppId = "shop".parse().unwrap();
        let routes = Routes::default();
        let wanted = vec![route(Provider::Apns, apns), route(Provider::Log, log)];
        routes.set(&app, &[(Channel::Push, wanted)].into());
        let target = testing::address(&app, Provider::Apns, "beef").target;
        let first = |id| routes.order(&app, &target, delivery(id), number, |_| true, |_| false)[0];
        let of_apns = (0..1000).filter(|id| first(*id) == Provider::Apns).count();
        [of_apns, 1000 - of_apns]
    }

    #[test]
    fn deliveries_are_shared_by_weight_and_a_reserve_gets_none() {
        let [most, few] = firsts(90, 10, 1);
        assert!((850..950).contains(&most) && few > 0, "{most}");
        for (weight, even) in [(1, 450..550), (2, 450..550), (8, 450..550)] {
            let [first, _] = firsts(weight, weight, 1);
            assert!(even.contains(&first), "{first} of 1000 with twice the weight {weight}");
        }
        assert_eq!(firsts(1, 0, 1), [1000, 0]);
        assert_eq!(firsts(1, 0, 2), [0, 1000], "the second attempt asks the next");
        assert_eq!(firsts(1, 0, 3), [1000, 0]);
    }

    #[test]
    fn only_a_provider_that_the_app_has_and_that_can_carry_is_asked() {
        let app: AppId = "shop".parse().unwrap();
        let routes = Routes::default();
        let target = testing::address(&app, Provider::Apns, "beef").target;
        let order = |has: &[Provider]| {
            let has = |one| has.contains(&one);
            let choice = routes.has_choice(&app, &target, has);
            let order = routes.order(&app, &target, delivery(1), 1, has, |_| false);
            assert!(!choice || order.len() > 1);
            order
        };
        assert_eq!(order(&[Provider::Fcm]), []);
        assert_eq!(
            order(&[Provider::Log, Provider::Apns]),
            [Provider::Apns],
            "without routes there is no other"
        );
        let wanted = vec![route(Provider::Fcm, 100), route(Provider::Log, 100)];
        routes.set(&app, &[(Channel::Push, wanted)].into());
        assert_eq!(order(Provider::ALL), [Provider::Log]);
        routes.set(&app, &BTreeMap::new());
        assert_eq!(order(Provider::ALL), [Provider::Apns]);
    }
    #[test]
    fn a_slow_provider_comes_last_but_for_one_in_sixteen_deliveries() {
        let app: AppId = "shop".parse().unwrap();
        let target = testing::address(&app, Provider::Twilio, "+41791234567").target;
        let [twilio, vonage, sns] = [Provider::Twilio, Provider::Vonage, Provider::Sns];
        let order = |weights: [u8; 2], id, number, slow: &[Provider]| {
            let routes = Routes::default();
            let [first, second] = weights;
            let wanted = vec![route(twilio, first), route(vonage, second), route(sns, 0)];
            routes.set(&app, &[(Channel::Sms, wanted)].into());
            routes.order(&app, &target, delivery(id), number, |_| true, |one| slow.contains(&one))
        };
        // Those that try the slow one are of all shares, so that it is tried whatever its weight.
        let tries = |weights, slow: Provider| {
            let asks = |id: &u128| order(weights, *id, 1, &[slow])[0] == slow;
            (0..4000).filter(asks).count()
        };
        assert!((200..300).contains(&tries([100, 0], twilio)));
        assert!((90..160).contains(&tries([8, 8], twilio)) && (90..160).contains(&tries([8, 8], vonage)));
        assert_eq!(tries([100, 0], vonage), 0, "a reserve gets none");
        let moved = (0..100)
            .find(|id| delivery(*id).draw_again(TRIES_SLOW_ONE_IN) > 0)
            .unwrap();
        assert_eq!(order([100, 0], moved, 1, &[]), [twilio, vonage, sns]);
        assert_eq!(order([100, 0], moved, 1, &[twilio]), [vonage, sns, twilio]);
        assert_eq!(
            order([100, 0], moved, 2, &[twilio]),
            [sns, twilio, vonage],
            "each attempt begins with the next"
        );
        assert_eq!(order([100, 0], moved, 1, &[twilio, vonage, sns]), [twilio, vonage, sns]);
    }
}
