use proptest::prelude::*;

use super::*;

/// Who waits under which ticket.
fn waits(queue: &mut Queue, caller: &str, urgency: Urgency) -> Ticket {
    match queue.enter(caller, urgency) {
        Entry::Waits(ticket) => ticket,
        other => panic!("{caller}: {other:?}"),
    }
}

#[test]
fn the_urgent_go_first_and_one_in_four_turns_is_the_others() {
    let mut queue = Queue::new(1, 100);
    assert_eq!(queue.enter("busy", Urgency::Normal), Entry::Served);
    let normal: Vec<_> = (0..3).map(|_| waits(&mut queue, "n", Urgency::Normal)).collect();
    let urgent: Vec<_> = (0..8).map(|_| waits(&mut queue, "u", Urgency::Urgent)).collect();
    let order: Vec<_> = std::iter::from_fn(|| queue.leave()).collect();
    let expected = [
        urgent[0], urgent[1], urgent[2], normal[0], urgent[3], urgent[4], urgent[5], normal[1], urgent[6], urgent[7],
        normal[2],
    ];
    assert_eq!(order, expected);
    assert_eq!(queue.waiting(), 0);
}

#[test]
fn callers_take_turns() {
    let mut queue = Queue::new(1, 100);
    assert_eq!(queue.enter("busy", Urgency::Normal), Entry::Served);
    let greedy: Vec<_> = (0..3).map(|_| waits(&mut queue, "greedy", Urgency::Normal)).collect();
    let modest = waits(&mut queue, "modest", Urgency::Normal);
    let order: Vec<_> = std::iter::from_fn(|| queue.leave()).collect();
    assert_eq!(order, [greedy[0], modest, greedy[1], greedy[2]]);
}

#[test]
fn it_has_a_bound_and_keeps_room_for_the_urgent() {
    let mut queue = Queue::new(1, 8);
    assert_eq!(queue.enter("a", Urgency::Normal), Entry::Served);
    for _ in 0..6 {
        waits(&mut queue, "a", Urgency::Normal);
    }
    assert_eq!(queue.enter("b", Urgency::Normal), Entry::Full);
    let urgent = waits(&mut queue, "b", Urgency::Urgent);
    waits(&mut queue, "b", Urgency::Urgent);
    assert_eq!(queue.enter("b", Urgency::Urgent), Entry::Full);
    queue.give_up("b", Urgency::Urgent, urgent);
    waits(&mut queue, "b", Urgency::Urgent);
    // Who gave up before is not there to give up again.
    queue.give_up("b", Urgency::Urgent, urgent);
    assert_eq!(queue.waiting(), 8);
}

#[test]
fn who_goes_away_and_comes_back_has_one_turn_and_nothing_grows() {
    let mut queue = Queue::new(1, 100_000);
    assert_eq!(queue.enter("busy", Urgency::Normal), Entry::Served);
    let honest = waits(&mut queue, "honest", Urgency::Normal);
    for round in 0..100_000 {
        let caller = format!("n{}", round % 5_000);
        let ticket = waits(&mut queue, &caller, Urgency::Normal);
        queue.give_up(&caller, Urgency::Normal, ticket);
    }
    let lane = &queue.normal;
    assert!(lane.turns.len() <= 2 * GONE + 2, "{} turns", lane.turns.len());
    assert_eq!((lane.turns.len(), lane.waiting.len()), (lane.gone + 1, lane.gone + 1));
    let back: Vec<_> = (0..3).map(|_| waits(&mut queue, "n4999", Urgency::Normal)).collect();
    let other = waits(&mut queue, "other", Urgency::Normal);
    let order: Vec<_> = std::iter::from_fn(|| queue.leave()).collect();
    assert_eq!(order, [honest, back[0], other, back[1], back[2]]);
    assert_eq!((queue.normal.gone, queue.normal.tickets), (0, 0));
}

#[derive(Clone, Debug)]
enum Step {
    Enter(u8, bool),
    Leave,
    GiveUp(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..5, any::<bool>()).prop_map(|(caller, urgent)| Step::Enter(caller, urgent)),
        3 => Just(Step::Leave),
        1 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// Never more are served than may be, nobody waits while there is room, and everybody who waits is served at some time.
    #[test]
    fn everybody_who_waits_is_served(at_a_time in 1usize..4, bound in 0usize..20, steps in steps()) {
        let mut queue = Queue::new(at_a_time, bound);
        let mut served = 0usize;
        let mut waiting: Vec<(Ticket, String, Urgency)> = Vec::new();
        let take = |queue: &mut Queue, waiting: &mut Vec<(Ticket, String, Urgency)>| {
            let next = queue.leave();
            if let Some(ticket) = next {
                let before = waiting.len();
                waiting.retain(|(known, ..)| *known != ticket);
                assert_eq!(waiting.len() + 1, before, "served who does not wait");
            }
            next.is_some()
        };
        for step in steps {
            match step {
                Step::Enter(caller, urgent) => {
                    let urgency = if urgent { Urgency::Urgent } else { Urgency::Normal };
                    let caller = caller.to_string();
                    match queue.enter(&caller, urgency) {
                        Entry::Served => served += 1,
                        Entry::Waits(ticket) => waiting.push((ticket, caller, urgency)),
                        Entry::Full => prop_assert!(waiting.len() >= bound - bound / 4),
                    }
                }
                Step::Leave if served > 0 => {
                    if !take(&mut queue, &mut waiting) {
                        served -= 1;
                    }
                }
                Step::Leave => {}
                Step::GiveUp(who) if !waiting.is_empty() => {
                    let (ticket, caller, urgency) = waiting.swap_remove(who.index(waiting.len()));
                    queue.give_up(&caller, urgency, ticket);
                }
                Step::GiveUp(_) => {}
            }
            prop_assert!(served <= at_a_time);
            prop_assert!(waiting.len() <= bound);
            prop_assert_eq!(queue.waiting(), waiting.len());
            prop_assert!(waiting.is_empty() || served == at_a_time, "somebody waits while there is room");
        }
        for _ in 0..waiting.len() {
            prop_assert!(take(&mut queue, &mut waiting));
        }
        prop_assert!(waiting.is_empty());
        // What is left are turns of those who have gone.
        for lane in [&queue.urgent, &queue.normal] {
            prop_assert_eq!((lane.turns.len(), lane.waiting.len(), lane.tickets), (lane.gone, lane.gone, 0));
        }
    }
}
