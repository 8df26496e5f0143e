//! The path of one notification through this worker, in order. Each stage takes the type that the stage before returns, so
//! the compiler checks their order. A dropped message is given back to the server.

mod afford;
mod attempt;
mod barrier;
mod border;
mod brake;
mod broadcast;
mod conclude;
mod consent;
mod context;
mod controls;
mod count;
mod dedupe;
mod deliver;
mod expand;
mod follow;
mod forward;
mod hold;
mod in_flight;
mod intend;
mod interrupted;
mod letter;
mod limit;
mod open;
mod pace;
mod postpone;
mod pull;
mod receipts;
mod receivers;
mod reports;
mod resolve;
mod settle;
mod settlement;
mod shares;
mod split;
mod timing;
mod trace;
mod turn;
mod wanted;

use std::sync::Arc;

pub use self::{
    barrier::Barrier,
    brake::Brake,
    context::Pipeline,
    count::Sums,
    in_flight::InFlight,
    pace::Pace,
    pull::{LanePuller, lane_pullers, member_permits},
    settle::Announcer,
    settlement::Ticket,
    shares::Shares,
};
use self::{
    barrier::Current,
    open::{Opened, Read},
    settlement::{Settlement, Step, Stop},
};

impl Pipeline {
    /// Takes one message through all stages after the barrier.
    async fn run(self: Arc<Self>, current: Current) {
        let ended = match self.open(current).await {
            Ok(Read::Job(opened)) => self.path(opened).await,
            Ok(Read::Broadcast(pulled, broadcast)) => Box::pin(self.broadcast(pulled, *broadcast)).await,
            Err(stop) => Err(stop),
        };
        self.end_path(ended).await;
    }

    /// Takes the job of one member of a slice through the stages after [`Self::open`].
    async fn run_member(self: Arc<Self>, opened: Opened) {
        let ended = self.path(opened).await;
        self.end_path(ended).await;
    }

    async fn end_path(&self, ended: Step<Settlement>) {
        let settlement = match ended {
            Ok(settlement) => settlement,
            Err(Stop::Settle(settlement)) => *settlement,
            Err(Stop::GiveBack(pulled, wait)) => return pulled.give_back(wait),
            Err(Stop::HoldMember(pulled, until)) => return pulled.hold_member(until),
        };
        // What cannot be followed was given back.
        if let Ok(followed) = self.follow(settlement).await {
            self.settle(followed).await;
        }
    }

    async fn path(&self, opened: Opened) -> Step<Settlement> {
        let fresh = self.dedupe(opened)?;
        let clear = self.end_interrupted(fresh).await?;
        let wanted = self.end_unwanted(clear)?;
        let wanted = self.obey_controls(wanted).await?;
        let due = self.await_turn(wanted).await?;
        let addressed = self.resolve(due).await?;
        let agreed = self.consent(addressed)?;
        let agreed = self.demand_unsubscription(agreed).await?;
        let timely = self.timing(agreed).await?;
        let afforded = self.afford(timely).await?;
        let limited = self.limit(afforded).await?;
        let intended = self.write_intent(limited).await?;
        let tried = self.deliver(intended).await;
        self.conclude(tried).await
    }
}
