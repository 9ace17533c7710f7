//! What comes out: allowed with a permit, or denied with a reason.

/// The verdict on one request, and what the shadow rules would have said.
///
/// `Copy` and free of allocation: names are looked up when somebody asks
/// ([`Compiled::explain`](crate::Compiled::explain), [`Compiled::grant`](crate::Compiled::grant)).
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Let it pass.
    Allow(Permit),
    /// Refuse it.
    Deny(Denial),
}

impl Decision {
    /// Whether the request passes.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// What the shadow rules say, where there are any: it changes nothing for the request.
    pub fn shadow(&self) -> Option<Shadow> {
        match self {
            Self::Allow(permit) => permit.shadow,
            Self::Deny(denial) => denial.shadow,
        }
    }
}

/// Proof that a request may pass. Only [`Compiled::decide`](crate::Compiled::decide) makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    pub(crate) because: Because,
    pub(crate) shadow: Option<Shadow>,
}

impl Permit {
    /// Why the request passes.
    pub fn because(&self) -> Because {
        self.because
    }
}

/// Why a request passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// RBAC is not active for the workload.
    RbacOff,
    /// The configuration is permissive: decided in shadow, and let pass whatever came out.
    ShadowOnly,
    /// A role grants it.
    Granted(Grant),
}

/// Why a request is refused. Only [`Compiled::decide`](crate::Compiled::decide) makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    pub(crate) reason: Reason,
    pub(crate) shadow: Option<Shadow>,
}

impl Denial {
    /// Why the request is refused.
    pub fn reason(&self) -> Reason {
        self.reason
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// RBAC is active and no role that is bound to anyone covers the workload.
    NoRole,
    /// There are roles, but none grants this request.
    NoMatch,
}

/// The verdict with the permissive configuration or bindings taken as enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shadow {
    /// It would pass, by this grant.
    Allow(Grant),
    /// It would be refused.
    Deny(Reason),
}

impl Shadow {
    /// Whether the request would pass.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// The role, rule, binding and subject that together grant a request, as places in the
/// [`Compiled`](crate::Compiled) policy that made the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grant {
    pub(crate) role: u32,
    pub(crate) rule: u32,
    pub(crate) binding: u32,
    pub(crate) subject: u32,
}

/// A [`Grant`] by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantNames<'a> {
    /// The role's namespace.
    pub role_namespace: &'a str,
    /// The role's name.
    pub role: &'a str,
    /// The rule's place in the role's `rules`, from 0.
    pub rule: u32,
    /// The binding's namespace.
    pub binding_namespace: &'a str,
    /// The binding's name.
    pub binding: &'a str,
    /// The subject's place in the binding's `subjects`, from 0.
    pub subject: u32,
}
