//! The engines of one lab: the usual one, and those that single machines name.

use super::{Engine, EngineKind};

/// What runs the machines of a lab.
#[derive(Debug)]
pub struct Engines {
    usual: Box<dyn Engine>,
    others: Vec<Box<dyn Engine>>,
}

impl Engines {
    /// One that runs all machines.
    pub fn new(usual: Box<dyn Engine>) -> Self {
        Self {
            usual,
            others: Vec::new(),
        }
    }

    /// One more, for the machines that name it.
    pub fn add(&mut self, other: Box<dyn Engine>) {
        self.others.push(other);
    }

    /// The one of all machines that name none.
    pub fn usual(&self) -> &dyn Engine {
        &*self.usual
    }

    /// The one of a machine that names this kind, or none.
    pub fn of(&self, named: Option<EngineKind>) -> &dyn Engine {
        let other = self.others.iter().find(|engine| Some(engine.kind()) == named);
        other.map_or(&*self.usual, |engine| &**engine)
    }
}
