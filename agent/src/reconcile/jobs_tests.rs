use super::*;
use crate::directory::tests::directory;
use crate::docker::volumes::tests::volume;
use crate::plan::tests::{container_of, running, unknown};

const PLACEMENT: PlacementId = PlacementId(11);

/// Without an engine every job ends with an error, at once.
fn jobs() -> (Jobs, Arc<Directory>) {
    let directory = Arc::new(directory());
    let (_, wanted) = watch::channel(directory.clone());
    (Jobs::new(None, wanted), directory)
}

fn step(action: Action) -> Step {
    Step {
        subject: Subject::Placement(PLACEMENT),
        action,
    }
}

fn command(id: i64, placement: PlacementId) -> Command {
    Command {
        id: CommandId(id),
        placement,
        kind: CommandKind::Restart,
    }
}

#[tokio::test]
async fn without_an_engine_a_step_fails_and_says_why() {
    let (mut jobs, directory) = jobs();
    jobs.start(step(Action::Pull), &directory);
    assert_eq!(jobs.ended(&DirtySet::default()).await, None);
    let reason = ApplyError::NoEngine.to_string();
    let subject = Subject::Placement(PLACEMENT);
    assert_eq!(jobs.backoff.reason(&subject), Some(reason.as_str()));
}

#[tokio::test]
async fn a_placement_is_busy_until_what_was_done_is_seen() {
    let (mut jobs, directory) = jobs();
    let dirty = DirtySet::default();
    jobs.start(step(Action::Start("id".to_owned())), &directory);
    jobs.seen(Look::FIRST);
    jobs.ended(&dirty).await;
    assert_eq!(jobs.phase(PLACEMENT), Some(Phase::Starting));
    // A look that began before the end did not see it.
    jobs.seen(Look::default());
    assert_eq!(jobs.phase(PLACEMENT), Some(Phase::Starting));
    jobs.seen(Look::FIRST);
    assert_eq!(jobs.phase(PLACEMENT), None);
    // A pull changes no container.
    jobs.start(step(Action::Pull), &directory);
    jobs.ended(&dirty).await;
    assert_eq!(jobs.phase(PLACEMENT), None);
}

#[tokio::test]
async fn a_command_waits_for_its_own_placement_and_for_no_other() {
    let (mut jobs, directory) = jobs();
    let other = PlacementId(12);
    let placement = &directory.placements[&PLACEMENT];
    let mut second = placement.clone();
    (second.id, second.instance) = (other, 2);
    let containers = [placement, &second].map(|of| container_of(of, running(7)));
    // The first placement is being pulled until its end is taken.
    jobs.start(step(Action::Pull), &directory);
    for (id, of) in [(1, PLACEMENT), (2, PLACEMENT), (3, other)] {
        jobs.queue(command(id, of));
    }
    assert_eq!(jobs.start_commands(&containers), []);
    assert_eq!(jobs.phase(PLACEMENT), Some(Phase::Pulling));
    assert_eq!(jobs.phase(other), Some(Phase::Starting));
    // Both ended; those of the first placement start one after the other, in order.
    let dirty = DirtySet::default();
    let mut ended = Vec::new();
    for _ in 0..2 {
        ended.extend(jobs.ended(&dirty).await.map(|(id, ..)| id));
    }
    for expected in [1, 2] {
        assert_eq!(jobs.start_commands(&containers), []);
        let (id, state, _) = jobs.ended(&dirty).await.unwrap();
        assert_eq!((id, state), (CommandId(expected), CommandState::Failed));
        assert_eq!(
            jobs.start_commands(&containers),
            [],
            "its end is not seen yet"
        );
        jobs.seen(dirty.look());
        ended.push(id);
    }
    assert_eq!(ended, [3, 1, 2].map(CommandId));
}

#[tokio::test]
async fn a_command_for_what_is_gone_or_unknown_ends_and_says_why() {
    let (mut jobs, directory) = jobs();
    jobs.queue(command(1, PLACEMENT));
    let [(_, state, why)] = &jobs.start_commands(&[])[..] else {
        panic!("it goes on");
    };
    assert_eq!(
        (*state, why.as_deref()),
        (CommandState::Failed, Some("there is no container"))
    );
    jobs.queue(command(2, PLACEMENT));
    let unknown = container_of(&directory.placements[&PLACEMENT], unknown(Some(7)));
    let [(_, state, why)] = &jobs.start_commands(&[unknown])[..] else {
        panic!("it goes on");
    };
    assert_eq!(*state, CommandState::Failed);
    assert!(why.as_ref().unwrap().contains("does not report"));
}

#[tokio::test]
async fn work_that_hangs_gives_its_slot_to_others_and_goes_on() {
    let slots = Arc::new(Semaphore::new(1));
    let (end, mut hangs) = watch::channel(false);
    let (begun, begins) = tokio::sync::oneshot::channel();
    let first = {
        let slots = slots.clone();
        tokio::spawn(async move {
            let hangs = async {
                begun.send(()).unwrap();
                hangs.wait_for(|end| *end).await.is_ok()
            };
            with_slot(&slots, Duration::ZERO, hangs).await
        })
    };
    begins.await.unwrap();
    with_slot(&slots, SLOT_HELD_MAX, async {}).await;
    assert!(!first.is_finished());
    end.send_replace(true);
    assert!(first.await.unwrap());
}

#[tokio::test]
async fn a_pull_ends_when_its_image_is_no_longer_wanted() {
    let planned = directory().placements[&PLACEMENT].clone();
    let ends = async |change: &dyn Fn(&mut Directory)| {
        let mut now = directory();
        now.placements
            .get_mut(&planned.id)
            .unwrap()
            .service_revision
            .0 += 1;
        let (slot, mut wanted) = watch::channel(Arc::new(now.clone()));
        let mut ended = std::pin::pin!(until_unwanted(&planned, &mut wanted));
        assert!(
            futures_util::poll!(&mut ended).is_pending(),
            "another revision has the same image"
        );
        change(&mut now);
        slot.send_replace(Arc::new(now));
        ended.await;
    };
    ends(&|now| now.placements.clear()).await;
    let placement = |now: &mut Directory, change: &dyn Fn(&mut Placement)| {
        change(now.placements.get_mut(&PLACEMENT).unwrap());
    };
    ends(&|now| placement(now, &|p| p.desired = Desired::Removed)).await;
    ends(&|now| placement(now, &|p| "other:2".clone_into(&mut p.spec.image))).await;
}

#[test]
fn nothing_is_done_that_is_not_wanted_any_more_and_cannot_be_taken_back() {
    let planned = directory().placements[&PLACEMENT].clone();
    let create = |now: &Directory| is_wanted(&Action::Create, Some(&planned), now);
    let remove = Action::RemoveVolume(volume(11, "/data", None));
    let remove = |now: &Directory| is_wanted(&remove, None, now);
    let mut now = directory();
    now.confirmed = true;
    assert!(create(&now) && !remove(&now));
    now.removed = true;
    assert!(!create(&now) && remove(&now));
    now.removed = false;
    now.placements.get_mut(&planned.id).unwrap().desired = Desired::Removed;
    assert!(!create(&now) && remove(&now));
    now.placements.clear();
    assert!(!create(&now) && remove(&now));
}
