//! What a process holds and uses, read from `/proc`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// User and system time of a process in hundredths of a second (fields 14 and 15 of
/// proc_pid_stat(5)).
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(')').expect("its name in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let times = fields[11..13].iter().map(|field| field.parse::<u64>());
    times.map(|time| time.expect("a number")).sum()
}

/// The part of a processor, in hundredths, that a process uses while `time` passes.
pub fn processor_use(pid: u32, time: Duration) -> f64 {
    let before = ticks(pid);
    thread::sleep(time);
    (ticks(pid) - before) as f64 / time.as_secs_f64()
}

/// Fills the file system that `directory` is in; gives the file that does.
pub fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path).expect("a file");
    // Large pieces first, then what is left.
    for size in [64 << 10, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
    }
    path
}
