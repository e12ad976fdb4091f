// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// @title Pays what a Tributary ledger has settled, and remembers which log said so.
/// @notice The owner posts one Merkle root an epoch, over (account, cumulative units of the token). A root can be
/// claimed against once its timelock is over, and can be revoked until then. Nobody, the owner included, can take
/// back what was funded: it leaves by claims alone.
contract TributaryDistributor is Ownable2Step, ReentrancyGuard {
    using SafeERC20 for IERC20;

    /// @notice One settled period. root: of the OpenZeppelin standard tree over (address, uint256), or zero when nobody
    /// has ever been paid here. cumulativeTotal: the sum of the tree's amounts. logSize: the log that the root was
    /// settled from; its root is logRootAt(logSize). claimableAt: Unix time in seconds.
    struct Epoch {
        bytes32 root;
        uint128 cumulativeTotal;
        uint64 logSize;
        uint64 claimableAt;
    }

    uint64 public constant MIN_TIMELOCK = 1 hours;
    uint64 public constant MAX_TIMELOCK = 30 days;
    /// @notice How many epochs may wait at once; currentEpoch() walks over them.
    uint256 public constant MAX_PENDING = 32;

    IERC20 public immutable token;
    /// @notice Seconds between the posting of a root and the first claim against it.
    uint64 public immutable timelock;

    /// @notice Units of the token that came in through fund().
    uint128 public totalFunded;
    /// @notice Units of the token that claims have paid.
    uint128 public totalClaimed;
    /// @notice The last epoch posted and not revoked, waiting or not; 0 before the first.
    uint256 public latestEpoch;
    /// @notice The largest log size that was ever posted or anchored.
    uint64 public anchoredSize;

    mapping(uint256 epoch => Epoch) public epochs;
    /// @notice Units that an account has been paid so far.
    mapping(address account => uint256) public claimed;
    /// @notice The root of the log at a size, or zero for a size that was never posted. Never changes.
    mapping(uint64 size => bytes32) public logRootAt;

    event EpochPosted(
        uint256 indexed epoch,
        bytes32 root,
        uint256 cumulativeTotal,
        uint64 logSize,
        bytes32 logRoot,
        uint64 claimableAt
    );
    event EpochRevoked(uint256 indexed epoch, bytes32 root);
    event Anchored(uint64 indexed size, bytes32 root);
    event Funded(address indexed from, uint256 amount, uint256 totalFunded);
    event Claimed(address indexed account, uint256 indexed epoch, uint256 amount, uint256 cumulative);
    event Swept(address indexed token, address indexed to, uint256 amount);

    error InvalidToken(address token);
    error InvalidTimelock(uint64 timelock, uint64 min, uint64 max);
    error EpochNotNext(uint256 epoch, uint256 next);
    error TooManyPending(uint256 pending);
    error TotalFell(uint256 total, uint256 previous);
    error TotalWithoutRoot(bytes32 root, uint256 total);
    error LogNotGrowing(uint64 size, uint64 previous);
    error LogForked(uint64 size, bytes32 root, bytes32 known);
    error NotRevocable(uint256 epoch, uint256 latest, uint64 claimableAt);
    error RootNotCurrent(bytes32 expected, bytes32 current);
    error InvalidProof(address account, uint256 cumulative);
    error NothingToClaim(address account, uint256 cumulative, uint256 claimed);
    error AboveEpochTotal(uint256 total, uint256 epochTotal);
    error AboveFunded(uint256 total, uint256 funded);
    error NothingToMove(address token);
    error OwnerRequired();

    constructor(IERC20 token_, address owner_, uint64 timelock_) Ownable(owner_) {
        if (address(token_).code.length == 0) revert InvalidToken(address(token_));
        if (timelock_ < MIN_TIMELOCK || timelock_ > MAX_TIMELOCK) {
            revert InvalidTimelock(timelock_, MIN_TIMELOCK, MAX_TIMELOCK);
        }
        token = token_;
        timelock = timelock_;
    }

    /// @notice Post the root of the next epoch; claims against it open when the timelock is over.
    function post(uint256 epoch, bytes32 root, uint128 cumulativeTotal, uint64 logSize, bytes32 logRoot)
        external
        onlyOwner
    {
        uint256 latest = latestEpoch;
        if (epoch != latest + 1) revert EpochNotNext(epoch, latest + 1);
        uint256 pending = latest - currentEpoch();
        if (pending >= MAX_PENDING) revert TooManyPending(pending);
        Epoch storage previous = epochs[latest];
        if (cumulativeTotal < previous.cumulativeTotal) revert TotalFell(cumulativeTotal, previous.cumulativeTotal);
        if ((root == 0) != (cumulativeTotal == 0)) revert TotalWithoutRoot(root, cumulativeTotal);
        if (logSize <= previous.logSize) revert LogNotGrowing(logSize, previous.logSize);

        uint64 claimableAt = uint64(block.timestamp) + timelock;
        epochs[epoch] = Epoch(root, cumulativeTotal, logSize, claimableAt);
        latestEpoch = epoch;
        emit EpochPosted(epoch, root, cumulativeTotal, logSize, logRoot, claimableAt);
        _remember(logSize, logRoot);
    }

    /// @notice Take back the latest epoch while its timelock runs. Its number is then free to be posted anew; what was
    /// said of the log stays said.
    function revoke(uint256 epoch) external onlyOwner {
        Epoch storage posted = epochs[epoch];
        if (epoch == 0 || epoch != latestEpoch || posted.claimableAt <= block.timestamp) {
            revert NotRevocable(epoch, latestEpoch, posted.claimableAt);
        }
        emit EpochRevoked(epoch, posted.root);
        delete epochs[epoch];
        latestEpoch = epoch - 1;
    }

    /// @notice Record the root of the log at a size beyond every size known here.
    function anchor(uint64 size, bytes32 root) external onlyOwner {
        if (size <= anchoredSize) revert LogNotGrowing(size, anchoredSize);
        _remember(size, root);
    }

    /// @notice Bring in tokens to be claimed. What arrives counts, whatever a token keeps on the way.
    function fund(uint256 amount) external nonReentrant {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 arrived = token.balanceOf(address(this)) - before;
        if (arrived == 0) revert NothingToMove(address(token));
        uint256 total = totalFunded + arrived;
        // A supply beyond 2^128 is no currency; the cast must still not wrap.
        if (total > type(uint128).max) revert AboveFunded(total, type(uint128).max);
        totalFunded = uint128(total);
        emit Funded(msg.sender, arrived, total);
    }

    /// @notice Pay an account what the current root gives it and it has not had yet. Anyone may send this for it.
    /// @param cumulative the account's amount in the tree, everything it was ever due.
    /// @param expectedRoot the root that the proof was made for.
    function claim(address account, uint256 cumulative, bytes32 expectedRoot, bytes32[] calldata proof)
        external
        nonReentrant
        returns (uint256 amount)
    {
        uint256 epoch = currentEpoch();
        Epoch storage current = epochs[epoch];
        bytes32 root = current.root;
        if (root == 0 || root != expectedRoot) revert RootNotCurrent(expectedRoot, root);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(account, cumulative))));
        if (!MerkleProof.verifyCalldata(proof, root, leaf)) revert InvalidProof(account, cumulative);
        uint256 before = claimed[account];
        if (cumulative <= before) revert NothingToClaim(account, cumulative, before);

        amount = cumulative - before;
        uint256 total = totalClaimed + amount;
        if (total > current.cumulativeTotal) revert AboveEpochTotal(total, current.cumulativeTotal);
        if (total > totalFunded) revert AboveFunded(total, totalFunded);
        claimed[account] = cumulative;
        totalClaimed = uint128(total); // at most totalFunded
        emit Claimed(account, epoch, amount, cumulative);
        token.safeTransfer(account, amount);
    }

    /// @notice Hand out tokens that came here by mistake: any other token, and of this one what fund() did not count.
    function sweep(IERC20 stray, address to) external onlyOwner nonReentrant {
        uint256 kept = address(stray) == address(token) ? totalFunded - totalClaimed : 0;
        uint256 balance = stray.balanceOf(address(this));
        if (balance <= kept) revert NothingToMove(address(stray));
        emit Swept(address(stray), to, balance - kept);
        stray.safeTransfer(to, balance - kept);
    }

    /// @notice Without an owner no root could be revoked.
    function renounceOwnership() public pure override {
        revert OwnerRequired();
    }

    /// @notice The epoch to claim against: the last one whose timelock is over, or 0.
    function currentEpoch() public view returns (uint256 epoch) {
        epoch = latestEpoch;
        while (epoch != 0 && epochs[epoch].claimableAt > block.timestamp) --epoch;
    }

    /// @notice The largest log size known here and the log's root at it; zeros before the first.
    function latestAnchor() external view returns (uint64 size, bytes32 root) {
        size = anchoredSize;
        root = logRootAt[size];
    }

    function _remember(uint64 size, bytes32 root) private {
        bytes32 known = logRootAt[size];
        if (root == 0 || (known != 0 && known != root)) revert LogForked(size, root, known);
        if (size > anchoredSize) anchoredSize = size;
        if (known == 0) {
            logRootAt[size] = root;
            emit Anchored(size, root);
        }
    }
}
