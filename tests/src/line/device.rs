//! Carries the IP packets of network namespaces over emulated lines, in one thread of its own.
//!
//! A line is a pair of TUN devices, one on each of the hosts that it joins: what one host sends into its device comes out of
//! the other's, after the rate, queue, delay and losses of that [`Direction`].

use std::{
    ffi::c_int,
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{OFlags, fcntl_setfl},
    ioctl::{Opcode, Setter, ioctl, opcode},
};

use super::{Conditions, Counters, Direction, HEADER_BYTES};
use crate::hosts::{Host, TUN};

/// A set of lines between hosts and the thread that drives them; dropping it takes the devices away.
#[derive(Debug)]
pub struct DeviceLines {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One line of a set, to watch and to change while it runs. Clones are the same line.
#[derive(Clone, Debug)]
pub struct DeviceLine {
    shared: Arc<Shared>,
    index: usize,
}

/// A TUN device of a host.
#[derive(Debug)]
pub struct Tun {
    file: File,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    devices: Vec<[Tun; 2]>,
    wake: UnixStream,
}

#[derive(Debug)]
struct State {
    /// By line: up, then down.
    lines: Vec<[Direction<Vec<u8>>; 2]>,
    is_closed: bool,
}

impl Tun {
    /// Makes a device of this name on a host. It has no address yet and is down.
    ///
    /// # Errors
    /// Without root, or if the name is taken or longer than 15 bytes.
    pub fn new(host: &Host, name: &str) -> io::Result<Self> {
        host.within(|| {
            let file = File::options().read(true).write(true).open(TUN)?;
            let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
            let length = name.len().min(NAME_BYTES - 1);
            request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
            set_interface(&file, request)?;
            fcntl_setfl(&file, OFlags::NONBLOCK)?;
            Ok(Self { file })
        })
    }
}

impl DeviceLines {
    /// Joins pairs of devices, the user's end of each first, by lines that are so up and down, their randomness following from `seed`.
    ///
    /// # Errors
    /// If the system gives no more threads or descriptors.
    pub fn start(lines: Vec<([Tun; 2], Conditions, Conditions)>, seed: u64) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let now = Instant::now();
        let mut devices = Vec::new();
        let mut directions = Vec::new();
        for (index, (pair, up, down)) in lines.into_iter().enumerate() {
            let seed = seed.wrapping_add(index as u64);
            devices.push(pair);
            directions.push([Direction::new(up, seed, now), Direction::new(down, !seed, now)]);
        }
        let state = Mutex::new(State { lines: directions, is_closed: false });
        let shared = Arc::new(Shared { state, devices, wake });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("lines".into()).spawn(move || drive(&of_thread, &woken))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The line of this index.
    pub fn line(&self, index: usize) -> DeviceLine {
        DeviceLine { shared: self.shared.clone(), index }
    }
}

impl Drop for DeviceLines {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl DeviceLine {
    /// Changes what the line is like towards the server (first) and back (second), from now on.
    pub fn change(&self, change: impl FnOnce(&mut Conditions, &mut Conditions)) {
        let mut state = self.shared.lock();
        let [up, down] = &mut state.lines[self.index];
        let (mut up_conditions, mut down_conditions) = (up.conditions(), down.conditions());
        change(&mut up_conditions, &mut down_conditions);
        let now = Instant::now();
        up.set_conditions(now, up_conditions);
        down.set_conditions(now, down_conditions);
        drop(state);
        self.shared.wake();
    }

    /// Makes the line silent, or brings it back.
    pub fn set_out(&self, is_out: bool) {
        self.change(|up, down| (up.is_out, down.is_out) = (is_out, is_out));
    }

    /// What became of the packets towards the server and back.
    pub fn counters(&self) -> (Counters, Counters) {
        let state = self.shared.lock();
        let [up, down] = &state.lines[self.index];
        (up.counters(), down.counters())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the thread's wait. A full pipe means that it is being woken already.
    fn wake(&self) {
        let _ = (&self.wake).write(&[0]);
    }

    /// Takes in what the ready devices have and gives out what is due; when to come back, `None` once closed.
    fn turn(&self, ready: &[(usize, usize)], buffer: &mut [u8]) -> Option<Option<Instant>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        for &(line, end) in ready {
            for _ in 0..PACKETS_A_TURN {
                let Ok(length) = (&self.devices[line][end].file).read(buffer) else { break };
                let payload_bytes = length.saturating_sub(HEADER_BYTES);
                state.lines[line][end].handle_packet(Instant::now(), payload_bytes, buffer[..length].to_vec());
            }
        }
        let now = Instant::now();
        for (directions, ends) in state.lines.iter_mut().zip(&self.devices) {
            for (from, direction) in directions.iter_mut().enumerate() {
                while let Some(packet) = direction.poll_packet(now) {
                    // A host that is going down takes no more packets.
                    let _ = (&ends[1 - from].file).write(&packet);
                }
            }
        }
        Some(state.lines.iter().flatten().filter_map(Direction::poll_timeout).min())
    }
}

/// Runs until the set is closed.
fn drive(shared: &Shared, woken: &UnixStream) {
    precede_programs();
    let mut buffer = vec![0; PACKET_MAX_BYTES];
    let mut ready = Vec::new();
    while let Some(until) = shared.turn(&ready, &mut buffer) {
        ready.clear();
        wait(shared, woken, until, &mut ready);
    }
}

/// Waits until a device has packets or `until` has come; fills `ready` with the lines and ends that have.
fn wait(shared: &Shared, woken: &UnixStream, until: Option<Instant>, ready: &mut Vec<(usize, usize)>) {
    let ends: Vec<(usize, usize)> = (0..shared.devices.len()).flat_map(|line| [(line, 0), (line, 1)]).collect();
    let mut polled: Vec<PollFd<'_>> =
        ends.iter().map(|&(line, end)| PollFd::from_borrowed_fd(shared.devices[line][end].file.as_fd(), PollFlags::IN)).collect();
    polled.push(PollFd::new(woken, PollFlags::IN));
    let timeout = until.map(|until| {
        let wait = until.saturating_duration_since(Instant::now());
        Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
    });
    if rustix::event::poll(&mut polled, timeout.as_ref()).is_err() {
        return;
    }
    ready.extend(ends.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty()).map(|(end, _)| *end));
    if polled.last().is_some_and(|polled| !polled.revents().is_empty()) {
        let _ = (&*woken).read(&mut [0; 64]);
    }
}

/// Lets this thread run before the programs that are measured, as a line does not wait for a PC; without `chrt` it takes its turn.
fn precede_programs() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let _ = Command::new("chrt").args(["--fifo", "--pid", PRIORITY, &thread]).output();
}

/// The kernel's `struct ifreq` as TUNSETIFF reads it: linux/if.h.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

#[expect(unsafe_code, reason = "no crate in the tree makes TUN devices, and std has no ioctl")]
fn set_interface(tun: &File, request: InterfaceRequest) -> io::Result<()> {
    const { assert!(size_of::<InterfaceRequest>() == 40) };
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which `InterfaceRequest` has the size and layout of, and writes nothing that is kept.
    unsafe { ioctl(tun, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(())
}

/// linux/if_tun.h: _IOW('T', 202, int).
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const NAME_BYTES: usize = 16;

/// Of a TUN device's packets; lines have MTUs of their own.
const PACKET_MAX_BYTES: usize = 65_536;
/// So many packets are taken from one device before the others get their turn.
const PACKETS_A_TURN: usize = 64;
/// Above the 5 at which measuring runs are started on a shared machine.
const PRIORITY: &str = "10";
