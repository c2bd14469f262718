//! The calls into NVML.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::os::raw::{c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;

use crate::library::{Device, TEXT};

/// `nvmlPciInfo_t` of `nvmlDeviceGetPciInfo_v3`, with room behind it for what a later driver may add.
#[repr(C)]
#[derive(Default)]
pub(crate) struct PciInfo {
    legacy_bus_id: [c_char; 16],
    numbers: [c_uint; 5],
    pub(crate) bus_id: [c_char; 32],
    reserve: [u64; 8],
}

/// The library; never unloaded, the process is too short for that.
pub(crate) struct Symbols {
    handle: *mut c_void,
}

impl Symbols {
    /// Loads the library, or says why not in the linker's words.
    pub(crate) fn load(library: &OsStr) -> Result<Self, String> {
        let Ok(name) = CString::new(library.as_bytes()) else {
            return Err("the library's path holds a zero byte".to_owned());
        };
        // SAFETY: `name` is a C string that lives through the call. The library's constructors run; it is the driver's
        // own, which every program with a GPU loads.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives null or a C string that is valid until this thread's next call of the linker.
            let text = unsafe { libc::dlerror() };
            if text.is_null() {
                return Err("the dynamic linker gives no reason".to_owned());
            }
            // SAFETY: not null, see above; copied at once.
            let text = unsafe { CStr::from_ptr(text) };
            return Err(text.to_string_lossy().into_owned());
        }
        Ok(Self { handle })
    }

    fn find(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is of a library that stays loaded, `name` is a C string.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    /// What NVML calls a code.
    pub(crate) fn error_text(&self, code: c_int) -> String {
        type F = unsafe extern "C" fn(c_int) -> *const c_char;
        let Some(function) = self.find(c"nvmlErrorString") else {
            return format!("NVML error {code}");
        };
        // SAFETY: nvml.h declares nvmlErrorString with this type.
        let function: F = unsafe { std::mem::transmute(function) };
        // SAFETY: it takes any code and gives a constant C string.
        let text = unsafe { function(code) };
        if text.is_null() {
            return format!("NVML error {code}");
        }
        // SAFETY: not null, a constant C string.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    }

    /// A function without arguments. `None`, here and below: the library does not have it.
    pub(crate) fn plain(&self, name: &CStr) -> Option<c_int> {
        type F = unsafe extern "C" fn() -> c_int;
        // SAFETY: the callers name functions that nvml.h declares with this type.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: no arguments, no preconditions.
        Some(unsafe { function() })
    }

    /// A function that fills a text.
    pub(crate) fn system_text(&self, name: &CStr, text: &mut [c_char; TEXT]) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: the buffer has the size given.
        Some(unsafe { function(text.as_mut_ptr(), LENGTH) })
    }

    /// A function that fills a number.
    pub(crate) fn system_number(&self, name: &CStr, number: &mut c_uint) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_uint) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: the pointer is to a number that lives through the call.
        Some(unsafe { function(number) })
    }

    /// A function that gives the device at a place.
    pub(crate) fn handle(&self, name: &CStr, at: c_uint, device: &mut Device) -> Option<c_int> {
        type F = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: the pointer is to a handle that lives through the call.
        Some(unsafe { function(at, &raw mut device.0) })
    }

    /// The MIG device at a place of a GPU.
    pub(crate) fn instance(&self, gpu: Device, at: c_uint, device: &mut Device) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_void, c_uint, *mut *mut c_void) -> c_int;
        let found = self.find(c"nvmlDeviceGetMigDeviceHandleByIndex")?;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(found) };
        // SAFETY: `gpu` is a handle of this library, which was not shut down; the pointer lives through the call.
        Some(unsafe { function(gpu.0, at, &raw mut device.0) })
    }

    /// A function that fills a text about a device.
    pub(crate) fn device_text(
        &self,
        name: &CStr,
        device: Device,
        text: &mut [c_char; TEXT],
    ) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_void, *mut c_char, c_uint) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: a handle of this library; the buffer has the size given.
        Some(unsafe { function(device.0, text.as_mut_ptr(), LENGTH) })
    }

    /// A function that fills a number about a device.
    pub(crate) fn device_number(
        &self,
        name: &CStr,
        device: Device,
        number: &mut c_uint,
    ) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_void, *mut c_uint) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(name)?) };
        // SAFETY: a handle of this library; the number lives through the call.
        Some(unsafe { function(device.0, number) })
    }

    /// Whether MIG is on, now and after the next reset.
    pub(crate) fn mig_mode(
        &self,
        device: Device,
        current: &mut c_uint,
        pending: &mut c_uint,
    ) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_void, *mut c_uint, *mut c_uint) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(c"nvmlDeviceGetMigMode")?) };
        // SAFETY: a handle of this library; both numbers live through the call.
        Some(unsafe { function(device.0, current, pending) })
    }

    /// The PCI address of a device.
    pub(crate) fn pci_info(&self, device: Device, info: &mut PciInfo) -> Option<c_int> {
        type F = unsafe extern "C" fn(*mut c_void, *mut PciInfo) -> c_int;
        // SAFETY: as above.
        let function: F = unsafe { std::mem::transmute(self.find(c"nvmlDeviceGetPciInfo_v3")?) };
        // SAFETY: a handle of this library; the structure is at least as large as version 3 of it.
        Some(unsafe { function(device.0, info) })
    }
}

/// The size of text buffers, as NVML wants it.
#[allow(clippy::cast_possible_truncation, reason = "128 fits")]
const LENGTH: c_uint = TEXT as c_uint;
