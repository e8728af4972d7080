//! What the allocator keeps of memory that is free.
//!
//! glibc spreads threads over eight arenas for each processor, and each arena keeps the most that it ever had. A daemon has
//! some hundred threads for what blocks, and what they allocate comes in bursts: pulls. Its memory would grow for hours to
//! the sum of the worst moments of all arenas, and stay there. A command's peak would depend on which threads met which
//! buffers. So there is one arena for each processor, and a daemon gives what is free back to the system from time to time.

use std::time::Duration;

/// How often free memory is given back. It takes milliseconds after a burst, and no time when nothing happened.
const EVERY: Duration = Duration::from_secs(30);

/// Has the allocator work with few arenas. To be called before there are threads.
pub(crate) fn few_arenas() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    allocator::limit_arenas(i32::try_from(processors).unwrap_or(i32::MAX));
}

/// Gives free memory back, for ever.
pub(crate) async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        // Other threads that allocate wait meanwhile; those of the runtime do as little of that as possible.
        if tokio::task::spawn_blocking(allocator::give_back).await.is_err() {
            return;
        }
    }
}

#[cfg(target_env = "gnu")]
mod allocator {
    /// At least two, as glibc has them for small machines: somebody may be in one of them for long.
    pub(super) fn limit_arenas(arenas: i32) {
        // SAFETY: mallopt takes numbers alone, and may be called at any time; that a parameter is unknown it answers.
        let known = unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas.max(2)) };
        if known == 0 {
            tracing::debug!("the allocator does not bound its arenas");
        }
    }

    pub(super) fn give_back() {
        // SAFETY: malloc_trim takes a number alone, locks each arena while it looks at it, and gives back only pages in
        // which nothing is allocated.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod allocator {
    //! Other allocators have neither arenas for each processor nor a way to be asked.

    pub(super) fn limit_arenas(_arenas: i32) {}

    pub(super) fn give_back() {}
}
