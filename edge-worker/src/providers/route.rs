//! Which providers an app wants asked for a channel, and in which order.

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
    /// next.
    pub(super) fn order(
        &self,
        app: &AppId,
        target: &Target,
        delivery: DeliveryId,
        number: u32,
        has: impl Fn(Provider) -> bool,
    ) -> Vec<Provider> {
        let can_carry = target.carriers();
        let all = self.0.load();
        let Some(routes) = all.get(app).and_then(|routes| routes.get(&target.channel())) else {
            return can_carry
                .iter()
                .copied()
                .find(|provider| has(*provider))
                .into_iter()
                .collect();
        };
        let usable = |route: &&Route| can_carry.contains(&route.provider) && has(route.provider);
        let usable: Vec<Route> = routes.iter().filter(usable).copied().collect();
        let (weighted, reserve): (Vec<_>, Vec<_>) = usable.into_iter().partition(|route| route.weight > 0);
        let mut order: Vec<_> = weighted.iter().map(|route| route.provider).collect();
        if let Some(first) = draw(&weighted, delivery) {
            // The drawn one first, the others in the app's order.
            order[..=first].rotate_right(1);
        }
        order.extend(reserve.iter().map(|route| route.provider));
        if !order.is_empty() {
            let skipped = (number.max(1) - 1) as usize % order.len();
            order.rotate_left(skipped);
        }
        order
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
        let first = |id| routes.order(&app, &target, delivery(id), number, |_| true)[0];
        let of_apns = (0..1000).filter(|id| first(*id) == Provider::Apns).count();
        [of_apns, 1000 - of_apns]
    }

    #[test]
    fn deliveries_are_shared_by_weight_and_a_reserve_gets_none() {
        let [most, few] = firsts(90, 10, 1);
        assert!((850..950).contains(&most) && few > 0, "{most}");
        assert_eq!(firsts(1, 0, 1), [1000, 0]);
        assert_eq!(firsts(1, 0, 2), [0, 1000], "the second attempt asks the next");
        assert_eq!(firsts(1, 0, 3), [1000, 0]);
    }

    #[test]
    fn only_a_provider_that_the_app_has_and_that_can_carry_is_asked() {
        let app: AppId = "shop".parse().unwrap();
        let routes = Routes::default();
        let target = testing::address(&app, Provider::Apns, "beef").target;
        let order = |has: &[Provider]| routes.order(&app, &target, delivery(1), 1, |one| has.contains(&one));
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
}
