pub mod conf;
pub mod ctl;
pub mod fs;
pub mod imsg;
pub mod log;
pub mod msg;
pub mod proc;
pub mod sys;
