//! The allocator, and the one thing that it is told.
#![allow(unsafe_code)]

/// Holds an idle session in a fifth less than the system's allocator does, and gives memory back when sessions have gone
/// (docs/PERFORMANCE.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads when the process begins (`jemalloc(3)`, TUNING). hyper takes four buffers of 8 KiB for a handshake,
/// which jemalloc would make and unmake one by one: sixteen pages for them at a time save 7 % of a handshake's instructions.
// SAFETY: jemalloc declares `const char *_rjem_malloc_conf`, for whoever uses it to define. A reference to an array is
// such a pointer, it is never null, and the text ends with a zero.
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 24] = b"slab_sizes:8192-8192:16\0";
