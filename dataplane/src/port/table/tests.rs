use std::os::fd::OwnedFd;

use super::super::vm::VmSocket;
use super::*;

/// A queue that is one end of a socket pair, where a frame is a packet, and the other end.
fn queue() -> (TapQueue, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (ours.into(), theirs)
}

fn ports() -> Ports {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    Ports::new(Rc::new(epoll), 1500, None)
}

fn plug(ports: &mut Ports) -> (PortId, Token, OwnedFd) {
    let id = ports.free_id().unwrap();
    let (queue, far) = queue();
    let token = plug_into(ports, id, tap(queue));
    (id, token, far)
}

fn tap(queue: TapQueue) -> Device {
    let takes_uso = true;
    Device::Tap { queue, takes_uso }
}

fn plug_into(ports: &mut Ports, id: PortId, device: Device) -> Token {
    ports.add(id, device, Vec::new()).unwrap();
    ports.get(id).unwrap().token
}

#[test]
fn numbers_are_given_again_last_of_all() {
    let mut ports = ports();
    let all: Vec<u32> = (1..MAX_PORTS).map(|_| plug_nothing(&mut ports)).collect();
    assert_eq!(all, (1..MAX_PORTS).collect::<Vec<_>>());
    assert_eq!(ports.free_id(), None);
    for id in [7, 3, 9] {
        assert!(ports.remove(PortId(id)).is_some());
        assert!(ports.remove(PortId(id)).is_none());
    }
    let again: Vec<u32> = (0..3).map(|_| plug_nothing(&mut ports)).collect();
    assert_eq!(again, [3, 7, 9]);
    assert!(ports.remove(PortId(5)).is_some());
    assert!(ports.remove(PortId(4000)).is_some());
    assert_eq!(plug_nothing(&mut ports), 4000);
}

fn plug_nothing(ports: &mut Ports) -> u32 {
    let id = ports.free_id().unwrap();
    let nothing = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
    plug_into(ports, id, tap(nothing.unwrap().into()));
    id.0
}

#[test]
fn a_port_ends_once_and_its_number_is_free_when_the_last_worker_lets_go() {
    let (mut first, mut second) = (ports(), ports());
    let id = first.free_id().unwrap();
    let [(ours, _a), (theirs, _b)] = [queue(), queue()];
    let mut end = first.add(id, tap(ours), Vec::new()).unwrap();
    let token = first.get(id).unwrap().token;
    let queue = first.queue_of(id, theirs).unwrap();
    assert_eq!(queue.token, token);
    second.add_queue(queue, Vec::new()).unwrap();
    assert_eq!(second.current(token), Some(id));

    let told = |end: &mut PortEnd| end.0.try_recv().ok();
    first
        .remove(id)
        .unwrap()
        .tell("the first reason".to_owned());
    assert_eq!(told(&mut end), None);
    assert_eq!(first.current(token), None);
    // All others are taken, so that the next number would be this one.
    for _ in 2..MAX_PORTS {
        plug_nothing(&mut first);
    }
    assert_eq!(first.free_id(), None);
    second.remove(id).unwrap().tell("a later one".to_owned());
    assert_eq!(told(&mut end).as_deref(), Some("the first reason"));
    assert_eq!(first.free_id(), Some(id));
}

#[test]
fn turns_go_round_and_each_port_waits_once() {
    let mut ports = ports();
    let (a, token_a, _far_a) = plug(&mut ports);
    let (b, token_b, _far_b) = plug(&mut ports);
    for token in [token_a, token_a, token_b, token_a] {
        ports.enqueue(token);
    }
    assert_eq!(ports.next_turn(), Some((token_a, a)));
    ports.enqueue(token_a);
    assert_eq!(ports.next_turn(), Some((token_b, b)));
    assert_eq!(ports.next_turn(), Some((token_a, a)));
    assert!(!ports.has_turns());
    // The number's next holder has no turn for what its former one did.
    ports.enqueue(token_b);
    ports.remove(b);
    let (queue, _far) = queue();
    plug_into(&mut ports, b, tap(queue));
    ports.enqueue(token_b);
    assert_eq!(ports.next_turn(), None);
}

#[test]
fn a_full_port_costs_its_own_frames_only() {
    let mut ports = ports();
    let (a, _, _never_read) = plug(&mut ports);
    let (b, _, _far) = plug(&mut ports);
    let frame = [0; VNET_HDR_LEN + 1000];
    let sent = (0..100_000).take_while(|_| ports.emit(a, &frame).is_ok());
    let sent = sent.count() as u64;
    assert!(sent > 0);
    assert_eq!(ports.emit(b, &frame), Ok(()));
    assert_eq!(ports.emit(PortId(77), &frame), Err(PortFull));
    let of = |frames, full| Written {
        frames,
        bytes: 1000 * frames,
        full,
    };
    assert_eq!(ports.written(a), Some(of(sent, 1)));
    assert_eq!(ports.written(b), Some(of(1, 0)));
    assert_eq!(ports.written(PortId(77)), None);
    assert_eq!(ports.full(), 2);
    ports.remove(a);
    assert_eq!(ports.full(), 2, "what a port that is gone lost is in it");
}

#[test]
fn a_machine_that_reads_again_gets_what_waited_for_it() {
    use std::io::Read;
    let mut ports = ports();
    let (id, (ours, mut far)) = (PortId(1), std::os::unix::net::UnixStream::pair().unwrap());
    let token = plug_into(
        &mut ports,
        id,
        Device::Vm(VmSocket::stream(ours.into()).unwrap()),
    );
    let frame = [0; VNET_HDR_LEN + 1000];
    let sent = (0..100_000).take_while(|_| ports.emit(id, &frame).is_ok());
    let sent = sent.count();
    let whole = Written {
        frames: sent as u64,
        bytes: 1000 * sent as u64,
        full: 1,
    };
    assert_eq!(ports.written(id), Some(whole));
    far.set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    let mut left = sent * (4 + 1000);
    let mut buf = vec![0; 1 << 16];
    let serve = |ports: &mut Ports| {
        let mut events = Vec::with_capacity(4);
        let space = rustix::buffer::spare_capacity(&mut events);
        let at_once = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        epoll::wait(&*ports.epoll.clone(), space, Some(&at_once)).unwrap();
        for event in &events {
            let (data, flags) = (event.data.u64(), event.flags);
            assert_eq!(Token::from_bits(data), Some(token));
            ports.handle_event(token, flags);
        }
        events.len()
    };
    while left > 0 {
        left -= far.read(&mut buf).unwrap();
        serve(&mut ports);
    }
    assert_eq!(
        serve(&mut ports),
        0,
        "there is room, which is not waited for"
    );
    assert_eq!(ports.next_turn(), None);
    drop(far);
    assert_eq!(ports.emit(id, &frame), Ok(()));
    assert_eq!(
        ports.next_turn(),
        Some((token, id)),
        "it is gone, which its turn tells"
    );
    assert!(ports.read(id, &mut [0; 70_000]).is_err());
}
